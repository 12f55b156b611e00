"""How the reply to a prompt is written: what the chat template says of calls and thoughts, and which tokens say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pagoda.server.replies.dialects import Dialect, find_dialect
from pagoda.server.replies.thoughts import ThoughtMarks, find_thoughts, has_opened


@dataclass(frozen=True)
class ReplyStyle:
    """`hidden` marks are special tokens, which no client is shown; `shown_tokens` are their ids, since they have to
    stand in the text all the same. The reply `is_thinking` from the start where the prompt has opened a thought.
    """

    dialect: Dialect | None = None
    thoughts: ThoughtMarks | None = None
    is_thinking: bool = False
    hidden: tuple[str, ...] = ()
    shown_tokens: frozenset[int] = frozenset()


def style_of(template: str, prompt: str, tokenizer: Any) -> ReplyStyle:
    """The style of replies to `prompt`, which the template made."""
    dialect, thoughts = find_dialect(template), find_thoughts(template)
    marks = set() if dialect is None else {*dialect.starts, *dialect.marks}
    marks |= set() if thoughts is None else {thoughts.start, thoughts.end}
    special = {
        token.content: token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special and token.content in marks
    }
    return ReplyStyle(
        dialect=dialect,
        thoughts=thoughts,
        is_thinking=thoughts is not None and has_opened(thoughts, prompt),
        hidden=tuple(special),
        shown_tokens=frozenset(special.values()),
    )
