"""Gives an example body for each route, small enough to be answered at once, to the app's document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HELLO = [{"role": "user", "content": "Where is the harbour?"}]

# Those that name a model are given one that is served.
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "/v1/completions": {"model": "", "prompt": "The sea was calm and", "max_tokens": 8},
    "/v1/chat/completions": {"model": "", "messages": HELLO, "max_tokens": 8},
    "/v1/embeddings": {"model": "", "input": ["The sea was calm.", "A storm came up."]},
    "/v1/responses": {"model": "", "input": "Where is the harbour?", "max_output_tokens": 8},
    "/v1/messages": {"model": "", "messages": HELLO, "max_tokens": 8},
    "/v1/messages/count_tokens": {"model": "", "messages": HELLO},
    "/tokenize": {"prompt": "The sea was calm."},
    "/detokenize": {"tokens": [300, 301, 302]},
    "/v1/kv/pin": {"model": "", "prompt": "You are the keeper of a lighthouse.", "ttl_seconds": 60},
    "/v1/kv/sessions": {"model": "", "name": "harbour", "messages": HELLO},
    "/v1/kv/sessions/{name}/resume": {"cache_salt": ""},
    "/v1/kv/caches": {"model": "", "messages": [{"role": "system", "content": "Be brief."}, *HELLO], "ttl": "60s"},
}


def add_examples(document: dict[str, Any], model: str) -> None:
    """Put them beside the bodies that they are of."""
    for path, example in EXAMPLES.items():
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        body["example"] = {**example, "model": model} if "model" in example else dict(example)
