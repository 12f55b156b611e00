"""The HTTP server: OpenAI's and Anthropic's APIs over one engine, and an API of the cache itself."""
