"""Serves OpenAI's and Anthropic's APIs, and one of the cache itself, over HTTP."""
