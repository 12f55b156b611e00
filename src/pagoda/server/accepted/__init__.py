"""How a call is accepted: room, turns and time of its tenant."""
