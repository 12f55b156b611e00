"""SIEVE: first in, first out, with a second chance in place (Zhang et al., NSDI 2024)."""

from __future__ import annotations

from typing import NamedTuple

from pagoda.cache.eviction.base import EvictionPolicy, Usage


class _Standing(NamedTuple):
    """In which round of the hand its turn comes, and how often it had been hit when the hand last passed."""

    round: int
    num_hits: int


class Sieve(EvictionPolicy):
    """A hand moves from the oldest to the newest and evicts what was not hit since it last passed.

    What was hit stays where it is, until the next round. In the paper the hand sees all that is cached; here it sees
    what may be evicted, and what becomes so behind the hand is seen in the next round.
    """

    def __init__(self) -> None:
        self._round = 0
        self._passed = -1  # when that was first used which the hand saw last
        self._newest = -1  # the same of what came last

    def over(self, num_pages: int) -> Sieve:  # noqa: ARG002
        return Sieve()

    def priority(self, usage: Usage) -> tuple[int, int]:
        if usage.note is None or usage.note.round < self._round:
            num_hits = 0 if usage.note is None else usage.note.num_hits
            usage.note = _Standing(self._round + (usage.first_used < self._passed), num_hits)
            self._newest = max(self._newest, usage.first_used)
        return usage.note.round, usage.first_used

    def keeps(self, usage: Usage) -> bool:
        self._round, self._passed = usage.note.round, usage.first_used
        if usage.num_hits == usage.note.num_hits:
            return False
        usage.note = _Standing(self._round + 1, usage.num_hits)
        return True

    def gone(self, usage: Usage, was_next: bool) -> None:
        """Behind the newest the hand begins again."""
        if was_next and usage.first_used == self._newest:
            self._round, self._passed = self._round + 1, -1
