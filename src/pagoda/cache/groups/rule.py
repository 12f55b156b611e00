"""What a layer group keeps of a sequence, as the page group asks for it; `LayerGroup` answers for a model's layers."""

from __future__ import annotations

from typing import Protocol


class KeepRule(Protocol):
    """Which tokens must be held for a sequence to go on."""

    @property
    def span(self) -> int | None:
        """The window in tokens; None if every token is kept."""

    @property
    def sink_tokens(self) -> int:
        """How many of the first tokens are kept besides, however far back they lie (StreamingLLM, arXiv 2309.17453)."""

    def first_needed(self, num_tokens: int) -> int:
        """The first token behind the sinks that a query at position `num_tokens`, or a later one, attends to."""

    def resumable_tokens(self, num_matched_tokens: int) -> int:
        """The deepest point up to `num_matched_tokens` from which layers can resume if all they need is held."""


class KeepAll:
    """Every token is kept, and any prefix can be resumed."""

    @property
    def span(self) -> int | None:
        return None

    @property
    def sink_tokens(self) -> int:
        return 0

    def first_needed(self, num_tokens: int) -> int:  # noqa: ARG002
        return 0

    def resumable_tokens(self, num_matched_tokens: int) -> int:
        return num_matched_tokens


def window_pages(span: int, page_tokens: int, step_tokens: int, sink_tokens: int = 0) -> int:
    """The most pages that a sequence with a window of `span` holds while it computes `step_tokens` in a step."""
    window = max(span - 2, 0) // page_tokens + 2 + -(-step_tokens // page_tokens)
    return window + -(-sink_tokens // page_tokens)
