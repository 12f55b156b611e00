"""Who computes what calls ask for, as the server sees it: an interface, and the LLM of this process behind it."""
