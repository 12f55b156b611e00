"""Remembers which pages went lately, when, why and for whom, within a bound: by fingerprints, without tokens.

Costs nothing while nothing goes. Knows the pages of one prefix tree; not who asked for them, which it is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import time
from typing import NamedTuple

from pagoda.cache.prefix.held import Held, Reason
from pagoda.cache.prefix.keys import TOKEN_NBYTES
from pagoda.cache.prefix.tree import Node, PrefixMatch, fingerprint_after

# Of one page with all that Python needs for it, as measured.
ENTRY_NBYTES = 128


class Departure(NamedTuple):
    """Pages went at `when`, in seconds since 1970; the request `whom` of `tenant` was served then, if any was.

    With `had_lapsed` a lease had kept them until its time was over.
    """

    when: float
    reason: Reason
    whom: str | None
    had_lapsed: bool
    tenant: str = ""


class GoneRun(NamedTuple):
    """So many tokens that follow a match were held before; the first of their pages went by `departure`."""

    departure: Departure
    num_tokens: int


class _Found(NamedTuple):
    """A page of so many bytes of tokens."""

    departure: Departure
    nbytes: int


class Gone:
    """The last pages that went, in about `most_nbytes`.

    Two generations: what is new goes into the younger one; once that is full it becomes the older one, which is
    forgotten as a whole.
    """

    def __init__(self, most_nbytes: int) -> None:
        self._most = max(most_nbytes // ENTRY_NBYTES // 2, 1)
        self._young: dict[int, Departure] = {}
        self._old: dict[int, Departure] = {}
        self._lapsed: dict[int, None] = {}
        self._whom: str | None = None
        self._tenant = ""
        self._departures: dict[tuple[Reason, bool], Departure] = {}  # of whom is served now

    @property
    def nbytes(self) -> int:
        """About as many as it takes now."""
        return ENTRY_NBYTES * (len(self._young) + len(self._old)) + ENTRY_NBYTES // 2 * len(self._lapsed)

    def serve(self, whom: str | None, tenant: str = "") -> None:
        """What goes from now on goes for the request `whom` of `tenant`."""
        self._whom, self._tenant = whom, tenant
        if self._departures:
            self._departures = {}

    def lapsed(self, kept: Iterable[Held]) -> None:
        """A lease that kept these has ended in time."""
        for held in kept:
            if len(self._lapsed) >= self._most:
                self._lapsed = {}
            self._lapsed[held.fingerprint] = None

    def removed(self, node: Node, reason: Reason) -> None:
        """A page goes. What a longer page holds as well is not gone."""
        if reason is Reason.SUPERSEDED:
            return
        fingerprint = node.fingerprint
        had_lapsed = fingerprint in self._lapsed
        if had_lapsed:
            del self._lapsed[fingerprint]
        departure = self._departures.get((reason, had_lapsed))
        if departure is None:
            departure = Departure(time(), reason, self._whom, had_lapsed, self._tenant)
            self._departures[reason, had_lapsed] = departure
        if len(self._young) >= self._most:
            self._young, self._old = {}, self._young
        self._young[fingerprint] = departure

    def find(self, root: Node, match: PrefixMatch, key: bytes, page_tokens: int) -> GoneRun | None:
        """What was held of `key`, and is no longer, where `match` below `root` ends; None if that is not remembered."""
        size = page_tokens * TOKEN_NBYTES
        fingerprint, start = (match.path[-1] if match.path else root).fingerprint, len(match.path) * size
        found: list[_Found] = []
        while not found or found[-1].nbytes == size:
            run = key[start : start + size]
            if (next_page := self._longest(fingerprint, run)) is None:
                break
            found.append(next_page)
            fingerprint, start = fingerprint_after(fingerprint, run), start + size
        num_tokens = sum(each.nbytes for each in found) // TOKEN_NBYTES - match.partial_tokens
        return GoneRun(found[0].departure, num_tokens) if num_tokens > 0 else None

    def _longest(self, parent: int, run: bytes) -> _Found | None:
        """The page of most of the first tokens of `run`: tails of ended sequences are short."""
        for nbytes in range(len(run), 0, -TOKEN_NBYTES):
            fingerprint = fingerprint_after(parent, run[:nbytes])
            departure = self._young.get(fingerprint) or self._old.get(fingerprint)
            if departure is not None:
                return _Found(departure, nbytes)
        return None
