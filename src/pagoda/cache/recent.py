"""Remembers the tokens of late sequences, within a bound, so that a prompt can be compared with those before it.

Knows tokens and whose they are. Keeps no text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from pagoda.cache.prefix.keys import common_tokens
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.report import CacheReport

# Of one sequence beside its tokens, with all that Python needs.
ENTRY_NBYTES = 1536


@dataclass
class Looked:
    """A prompt that was looked up: its tokens, later with those of its first answer behind them (`key`)."""

    request_id: str
    namespace: Namespace
    key: bytes
    num_prompt_tokens: int
    report: CacheReport

    @property
    def nbytes(self) -> int:
        return len(self.key) + ENTRY_NBYTES


class RecentSequences:
    """The last sequences that were looked up, in at most `most_nbytes`; the oldest first."""

    def __init__(self, most_nbytes: int) -> None:
        self._most_nbytes = most_nbytes
        self._entries: OrderedDict[str, Looked] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, looked: Looked) -> None:
        """One with an id that was there before takes its place."""
        self._drop(looked.request_id)
        self._entries[looked.request_id] = looked
        self.nbytes += looked.nbytes
        self._shrink()

    def ended(self, request_id: str, key: bytes) -> None:
        """The sequence has these tokens in the end."""
        looked = self._entries.get(request_id)
        if looked is not None:
            self.nbytes += len(key) - len(looked.key)
            looked.key = key
            self._shrink()

    def all(self) -> list[Looked]:
        return list(self._entries.values())

    def _shrink(self) -> None:
        while self.nbytes > self._most_nbytes and self._entries:
            self._drop(next(iter(self._entries)))

    def _drop(self, request_id: str) -> None:
        looked = self._entries.pop(request_id, None)
        if looked is not None:
            self.nbytes -= looked.nbytes


def closest(key: bytes, others: Iterable[Looked]) -> tuple[Looked | None, int]:
    """The one of `others`, and of equals the last, that shares most of the first tokens of `key`, and how many."""
    best, most = None, 0
    for other in others:
        num_tokens = common_tokens(other.key, key)
        if num_tokens >= most:
            best, most = other, num_tokens
    return (best, most) if most else (None, 0)
