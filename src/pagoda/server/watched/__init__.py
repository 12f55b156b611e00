"""Lets people watch the server: metrics, log, traces, events of the cache, and what the last hours were like."""
