"""From token ids to text, one token at a time: whole characters only, and stop strings never shown in part.

Knows a tokenizer's `decode`. Does not know requests or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What `decode` gives for bytes that do not (yet) make a character.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Tokens of the prompt decoded along with the first new ones: some tokenizers join tokens by what stands before them.
CONTEXT_TOKENS = 6

# Bytes that make no character after this many more tokens never will.
MOST_PENDING_TOKENS = 16


class TextStream:
    """The text of one sequence. `text` is final but for what `held_back` may still change."""

    def __init__(
        self,
        tokenizer: Any,
        prompt: Sequence[int],
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._skip_special_tokens = skip_special_tokens
        # A window of tokens: those before `_read` are in `text` already, and stay for context.
        self._window = list(prompt[-CONTEXT_TOKENS:])
        self._read = len(self._window)
        self._taken = 0
        self._stopped = False
        self.text = ""

    def push(self, token: int, may_stop: bool = True) -> str | None:
        """Add a token; returns the stop string that it completes, after which `text` is final."""
        self._window.append(token)
        addition = self._decode_new()
        if addition.endswith(REPLACEMENT) and len(self._window) - self._read <= MOST_PENDING_TOKENS:
            return None
        return self._extend(addition, may_stop)

    def finish(self) -> None:
        """No more tokens: bytes that never became a character are shown as such."""
        if not self._stopped and self._read < len(self._window):
            self._extend(self._decode_new(), may_stop=False)
        self._stopped = True

    def take(self) -> str:
        """The text that is settled since the last call."""
        settled = len(self.text) - (0 if self._stopped else self._held_back())
        addition = self.text[self._taken : settled]
        self._taken = max(settled, self._taken)
        return addition

    def _decode_new(self) -> str:
        """The text of the tokens from `_read` on, as they read after those before."""
        before = self._decode(self._window[: self._read])
        return self._decode(self._window)[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=self._skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def _extend(self, addition: str, may_stop: bool) -> str | None:
        self._window = self._window[max(self._read - CONTEXT_TOKENS, 0) :] if addition else self._window
        self._read = len(self._window)
        searched = len(self.text)
        self.text += addition
        return self._cut_at_stop(searched) if may_stop else None

    def _cut_at_stop(self, searched: int) -> str | None:
        """Cut `text` at the stop string that is complete first after `searched`, however text is cut into tokens."""
        found = [
            (start + len(stop), start, stop)
            for stop in self._stop
            if (start := self.text.find(stop, max(searched - len(stop) + 1, 0))) >= 0
        ]
        if not found:
            return None
        _, start, stop = min(found)
        self.text = self.text[: start + (len(stop) if self._include_stop else 0)]
        self._stopped = True
        return stop

    def _held_back(self) -> int:
        """How many characters at the end could be the beginning of a stop string."""
        return max((_overlap(self.text, stop) for stop in self._stop), default=0)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`, but not all of it."""
    start = text.find(stop[0], max(len(text) - len(stop) + 1, 0))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return len(text) - start if start >= 0 else 0
