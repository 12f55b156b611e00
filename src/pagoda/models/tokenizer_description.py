"""Describes the tokenizer of a checkpoint as data, in a child process which has transformers without torch."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pagoda.errors import UnsupportedModelError
from pagoda.models.plain_tokenizer import TokenizerDescription


def read(path: str) -> dict[str, Any] | None:
    """The description of the tokenizer in a directory; None if it has none. For a process of its own."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # to transformers it is not installed
    from pagoda.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(path))
    return None if tokenizer is None else asdict(describe(tokenizer))


def describe(tokenizer: Any) -> TokenizerDescription:
    """What a tokenizer of transformers consists of.

    Raises UnsupportedModelError if there is more to its ids: code in Python.
    """
    from transformers import TokenizersBackend

    own = type(tokenizer)
    is_plain = tokenizer.is_fast and all(
        getattr(own, name) is getattr(TokenizersBackend, name) for name in ("__call__", "_encode_plus")
    )
    if not is_plain:
        raise UnsupportedModelError(
            f"The tokenizer {own.__name__} is a program of transformers, not data of the library of tokenizers; give "
            "token ids, or use one that has a tokenizer.json."
        )
    return TokenizerDescription(
        backend=tokenizer.backend_tokenizer.to_str(),
        splits_special_tokens=tokenizer.split_special_tokens,
        special_tokens=tokenizer.special_tokens_map,
        chat_template=tokenizer.chat_template,
    )
