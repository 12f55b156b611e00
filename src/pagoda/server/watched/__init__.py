"""How the server is watched: metrics, log, traces, events, and what the last hours were like."""
