"""Serves the server's own API: the cache, the tokenizer, operation, and the pages for people."""
