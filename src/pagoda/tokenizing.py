"""The calls into a tokenizer. Whatever it raises is a RequestError, as one text or one sequence caused it.

A tokenizer in Rust that panics raises what is no Exception and would pass all handlers, with the thread it is on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagoda.errors import RequestError


def encode(tokenizer: Any, text: str | None = None, **options: Any) -> Any:
    """What `tokenizer` makes of a text."""
    try:
        return tokenizer(text, **options)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise RequestError(
            f"The tokenizer fails at this text ({error!r}); leave out what is unusual in it, or give token ids."
        ) from error


def decode(tokenizer: Any, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    """The text of token ids, with no space changed afterwards."""
    try:
        text: str = tokenizer.decode(
            token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise RequestError(
            f"The tokenizer fails at the text of these tokens ({error!r}); ask for token ids alone."
        ) from error
    return text


def special_tokens(tokenizer: Any) -> set[int]:
    """The ids that `decode` can leave out."""
    added = tokenizer.added_tokens_decoder
    return {*tokenizer.all_special_ids, *(token_id for token_id, token in added.items() if token.special)}
