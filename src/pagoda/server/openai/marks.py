"""Translates what OpenAI's clients say about the prompt cache: marks, how long they keep, what was written for them."""

from __future__ import annotations

from typing import Any

from pagoda.server.answered.record import Record
from pagoda.server.openai.responses_schema import CacheOptions
from pagoda.server.openai.schema import CacheBreakpoint, PromptCacheOptions

Options = PromptCacheOptions | CacheOptions | None

MOST_MARKS = 4
TTL_SECONDS = {"30m": 1800.0, "12h": 43200.0}


def kept(options: Options) -> dict[str, Any]:
    """Of a conversation, what options say about the end of the prompt: it counts as a mark unless they are explicit."""
    if options is None or options.mode == "explicit":
        return {}
    return {"ttl_seconds": TTL_SECONDS[options.ttl], "most_marks": MOST_MARKS - 1}


def ttl_of(mark: CacheBreakpoint | None, default: str) -> float | None:
    """How long what a mark ends is kept."""
    return None if mark is None else TTL_SECONDS[mark.ttl or default]


def num_written(record: Record, options: Options) -> int:
    """What is computed is written to the cache; with marks, or where only they count, what they keep of it."""
    only_marks = options is not None and options.mode == "explicit"
    return record.num_written if record.leases or only_marks else record.num_computed
