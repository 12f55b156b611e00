"""Output in a form that was asked for: JSON, a regular expression, a choice or a grammar, enforced by llguidance."""
