"""OpenAI's APIs: completions, chat completions, responses."""
