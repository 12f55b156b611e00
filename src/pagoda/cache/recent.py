"""Remembers the tokens of late sequences, within a bound, so that a prompt can be compared with those before it.

Knows tokens and whose they are. Keeps no text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from pagoda.cache.prefix.keys import TOKEN_NBYTES, common_tokens
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.report import CacheReport

# Of one sequence beside its tokens, with all that Python needs.
ENTRY_NBYTES = 1536


@dataclass
class Looked:
    """A prompt that was looked up: its tokens, later with those of its first answer behind them (`key`).

    `begin` and `end` tell in which order sequences were looked up and ended (None: not yet).
    """

    request_id: str
    namespace: Namespace
    key: bytes
    num_prompt_tokens: int
    report: CacheReport
    begin: int = 0
    end: int | None = None

    @property
    def nbytes(self) -> int:
        return len(self.key) + ENTRY_NBYTES

    @property
    def prompt_key(self) -> bytes:
        return self.key[: self.num_prompt_tokens * TOKEN_NBYTES]

    def ran_at(self, begin: int) -> bool:
        """Whether it was computed when another one was looked up."""
        return self.begin < begin and (self.end is None or self.end > begin)


@dataclass
class _Shelf:
    """What one tenant has here, the oldest first."""

    entries: OrderedDict[str, Looked] = field(default_factory=OrderedDict)
    nbytes: int = 0

    def drop(self, request_id: str) -> int:
        """How many bytes less there are."""
        looked = self.entries.pop(request_id, None)
        nbytes = 0 if looked is None else looked.nbytes
        self.nbytes -= nbytes
        return nbytes


class RecentSequences:
    """The last sequences that were looked up, in at most `most_nbytes`: the oldest go of whoever has most."""

    def __init__(self, most_nbytes: int) -> None:
        self._most_nbytes = most_nbytes
        self._shelves: dict[str, _Shelf] = {}
        self._numbers = count()
        self.nbytes = 0

    def add(self, looked: Looked) -> None:
        """One with an id that was there before takes its place."""
        shelf = self._shelves.setdefault(looked.namespace.tenant, _Shelf())
        self.nbytes -= shelf.drop(looked.request_id)
        looked.begin = next(self._numbers)
        shelf.entries[looked.request_id] = looked
        self._grow(shelf, looked.nbytes)

    def end(self, tenant: str, request_id: str, key: bytes) -> None:
        """The sequence has these tokens in the end."""
        shelf = self._shelves.get(tenant)
        looked = None if shelf is None else shelf.entries.get(request_id)
        if shelf is not None and looked is not None:
            growth = len(key) - len(looked.key)
            looked.key, looked.end = key, next(self._numbers)
            self._grow(shelf, growth)

    def all(self) -> list[Looked]:
        """In the order in which they were looked up."""
        entries = [looked for shelf in self._shelves.values() for looked in shelf.entries.values()]
        return sorted(entries, key=lambda looked: looked.begin)

    def _grow(self, shelf: _Shelf, nbytes: int) -> None:
        shelf.nbytes += nbytes
        self.nbytes += nbytes
        while self.nbytes > self._most_nbytes:
            tenant, largest = max(self._shelves.items(), key=lambda item: item[1].nbytes)
            self.nbytes -= largest.drop(next(iter(largest.entries)))
            if not largest.entries:
                del self._shelves[tenant]


def closest(key: bytes, others: Iterable[Looked]) -> tuple[Looked | None, int]:
    """The one of `others`, and of equals the last, that shares most of the first tokens of `key`, and how many."""
    best, most = None, 0
    for other in others:
        num_tokens = common_tokens(other.key, key)
        if num_tokens >= max(most, 1):
            best, most = other, num_tokens
    return best, most
