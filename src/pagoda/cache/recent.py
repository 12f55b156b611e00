"""Remembers the tokens of late sequences, within a bound, so that a prompt can be compared with those before it.

Knows tokens and whose they are. Keeps no text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, islice

from pagoda.cache.prefix.keys import TOKEN_NBYTES, common_tokens, key_tokens
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.report import CacheReport

# Of one sequence beside its tokens, with all that Python needs.
ENTRY_NBYTES = 1536
MOST_COMPARED = 64  # of the last ones, by all of their tokens
ABOUT_AS_ALIKE = 0.9
# Rows of so many tokens that two sequences share are no chance.
ROW_TOKENS, LEAST_SHARE = 8, 0.25
MOST_ROWS = 4096


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

    def beginning(self, namespace: Namespace, key: bytes) -> list[Looked]:
        """The last ones of `namespace` that begin with the tokens of `key`, few enough to be compared in a step."""
        shelf = self._shelves.get(namespace.tenant)
        entries = () if shelf is None else reversed(shelf.entries.values())
        found = (each for each in entries if each.namespace == namespace and each.key.startswith(key))
        return [*islice(found, MOST_COMPARED)][::-1]

    def _grow(self, shelf: _Shelf, nbytes: int) -> None:
        shelf.nbytes += nbytes
        self.nbytes += nbytes
        while self.nbytes > self._most_nbytes:
            tenant, largest = max(self._shelves.items(), key=lambda item: item[1].nbytes)
            self.nbytes -= largest.drop(next(iter(largest.entries)))
            if not largest.entries:
                del self._shelves[tenant]


def closest(key: bytes, others: Iterable[Looked], least_tokens: int = 1) -> tuple[Looked | None, int]:
    """The one of `others`, and of equals the last, that shares most of the first tokens of `key`, and how many."""
    best, most = None, 0
    for other in others:
        num_tokens = common_tokens(other.key, key)
        if num_tokens >= max(most, least_tokens):
            best, most = other, num_tokens
    return best, most


def most_alike(key: bytes, others: Sequence[Looked]) -> tuple[Looked | None, int]:
    """Of the last of `others` the one of the most tokens in common with `key`, and how many first ones it shares.

    Of those that are about as much alike that one counts which shares more of the first, and of equals the last.
    """
    wanted = set(key_tokens(key))
    rated = [(_share(wanted, set(key_tokens(each.prompt_key))), each) for each in others[-MOST_COMPARED:]]
    best = max((share for share, _ in rated), default=0.0)
    return closest(key, [each for share, each in rated if share >= best * ABOUT_AS_ALIKE and share], least_tokens=0)


def resembles(key: bytes, other: bytes) -> bool:
    """Whether enough rows of tokens of the shorter one stand somewhere in the longer one, as far as both are read."""
    shorter, longer = sorted((_rows(key), _rows(other)), key=len)
    return bool(shorter) and len(shorter & longer) >= LEAST_SHARE * len(shorter)


def _share(tokens: set[int], others: set[int]) -> float:
    return len(tokens & others) / max(len(tokens | others), 1)


def _rows(key: bytes) -> set[bytes]:
    size = ROW_TOKENS * TOKEN_NBYTES
    starts = range(0, len(key) - size + 1, TOKEN_NBYTES)[:MOST_ROWS]
    return {key[start : start + size] for start in starts}
