"""The text of one sequence as it grows, up to a stop string, no part of which is ever shown.

Knows pieces of text and how they come of tokens. Does not know requests or sampling.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from pagoda.detokenizer import REPLACEMENT, Detokenizer

__all__ = ["REPLACEMENT", "TextStream"]


class TextStream:
    """The text of one sequence. `text` is final but for what a stop string that has begun may take back."""

    def __init__(
        self,
        tokenizer: Any,
        prompt: Sequence[int],
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        shown: Collection[int] = (),
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens, shown)
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._settled: list[str] = []
        self._num_taken = 0
        self._end = ""  # where a stop string may have begun
        self._has_stopped = False

    @property
    def text(self) -> str:
        return "".join(self._settled) + self._end

    def push(self, token: int, may_stop: bool = True) -> str | None:
        """Add a token; returns the stop string that it completes, after which `text` is final."""
        return self._extend(self._detokenizer.push(token), may_stop)

    def finish(self) -> None:
        """No more tokens: bytes that never became a character are shown as such."""
        if not self._has_stopped:
            self._extend(self._detokenizer.finish(), may_stop=False)
            self._stop_at(len(self._end))

    def take(self) -> str:
        """The text that is settled since the last call."""
        addition = "".join(self._settled[self._num_taken :])
        self._num_taken = len(self._settled)
        return addition

    def _extend(self, addition: str, may_stop: bool) -> str | None:
        searched = len(self._end)
        self._end += addition
        found = self._find_stop(searched) if may_stop and addition else None
        if found is not None:
            start, stop = found
            self._stop_at(start + (len(stop) if self._include_stop else 0))
            return stop
        self._settle(len(self._end) - max((_overlap(self._end, stop) for stop in self._stop), default=0))
        return None

    def _find_stop(self, searched: int) -> tuple[int, str] | None:
        """Where the stop string begins that is complete first after `searched`, however text is cut into tokens."""
        found = [
            (start + len(stop), start, stop)
            for stop in self._stop
            if (start := self._end.find(stop, max(searched - len(stop) + 1, 0))) >= 0
        ]
        return min(found)[1:] if found else None

    def _stop_at(self, length: int) -> None:
        self._settle(length)
        self._end = ""
        self._has_stopped = True

    def _settle(self, length: int) -> None:
        """So many characters of the end are no part of a stop string."""
        if length:
            self._settled.append(self._end[:length])
            self._end = self._end[length:]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`, but not all of it."""
    start = text.find(stop[0], max(len(text) - len(stop) + 1, 0))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return len(text) - start if start >= 0 else 0
