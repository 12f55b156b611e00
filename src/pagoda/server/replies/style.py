"""Finds how the reply to a prompt is written: what its chat template says of calls and thoughts, by which tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pagoda.server.replies.dialects import Dialect, find_dialect
from pagoda.server.replies.thoughts import ThoughtMarks, find_thoughts, has_opened

# In the words with which templates of Llama 3 refuse a turn of several calls.
SINGLE = "only supports single tool-calls"


@dataclass(frozen=True)
class ReplyStyle:
    """`hidden` marks are special tokens, which no client is shown; `shown_tokens` are their ids, since they have to
    stand in the text all the same. The reply `is_thinking` from the start where the prompt has opened a thought, which
    the token `thought_end` ends, if there is one for that. With `is_single` the template takes turns of one call only.
    """

    dialect: Dialect | None = None
    thoughts: ThoughtMarks | None = None
    is_thinking: bool = False
    hidden: tuple[str, ...] = ()
    shown_tokens: frozenset[int] = frozenset()
    thought_end: int | None = None
    is_single: bool = False

    def num_thought_tokens(self, token_ids: Sequence[int]) -> int:
        """How many tokens of a reply that begins with a thought belong to it; 0 if that cannot be told."""
        if self.thought_end is None:
            return 0
        return token_ids.index(self.thought_end) + 1 if self.thought_end in token_ids else len(token_ids)


def style_of(template: str, prompt: str, tokenizer: Any) -> ReplyStyle:
    """The style of replies to `prompt`, which the template made."""
    dialect, thoughts = find_dialect(template), find_thoughts(template)
    marks = set() if dialect is None else {*dialect.starts, *dialect.marks}
    marks |= set() if thoughts is None else {thoughts.start, thoughts.end}
    added = tokenizer.added_tokens_decoder
    ids = {token.content: token_id for token_id, token in added.items() if token.content in marks}
    special = {mark: token_id for mark, token_id in ids.items() if added[token_id].special}
    return ReplyStyle(
        dialect=dialect,
        thoughts=thoughts,
        is_thinking=thoughts is not None and has_opened(thoughts, prompt),
        hidden=tuple(special),
        shown_tokens=frozenset(special.values()),
        thought_end=None if thoughts is None else ids.get(thoughts.end),
        is_single=SINGLE in template,
    )
