"""Computes what calls ask for: an interface, and the LLM of this process behind it."""
