"""The order of recurrent states, around that of a policy.

A state is of use to those who go on from it: what several have resumed from outlasts what nobody has, of which every
sequence leaves some, and what the one that came from it has left behind goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagoda.cache.eviction.base import EvictionPolicy, Usage

# Every use but the first counts like so many ticks for each slot, up to so many uses.
USE_TICKS = 4
MOST_USES = 4


class _Later:
    """A usage as if it had been last used so many ticks later."""

    def __init__(self, usage: Usage, ticks: int) -> None:
        self._usage = usage
        self.first_used = usage.first_used
        self.last_used = usage.last_used + ticks
        self.num_hits = usage.num_hits
        self.is_spent = usage.is_spent
        self.num_pages = usage.num_pages
        self.recompute_tokens = usage.recompute_tokens

    @property
    def fingerprint(self) -> int:
        return self._usage.fingerprint

    @property
    def note(self) -> Any:
        return self._usage.note

    @note.setter
    def note(self, note: Any) -> None:
        self._usage.note = note


class Resumed(EvictionPolicy):
    """The order of `policy` over `num_slots` slots."""

    def __init__(self, policy: EvictionPolicy, num_slots: int) -> None:
        self._policy = policy
        self._num_slots = num_slots
        self.lifetime_seconds = policy.lifetime_seconds
        self.num_queues = policy.num_queues

    def over(self, num_pages: int) -> Resumed:
        return Resumed(self._policy.over(num_pages), num_pages)

    def priority(self, usage: Usage) -> Any:
        return not usage.is_spent, self._policy.priority(self._later(usage))

    def queue(self, usage: Usage) -> int:
        return self._policy.queue(usage)

    def queues_in_order(self) -> Sequence[int]:
        return self._policy.queues_in_order()

    def keeps(self, usage: Usage) -> bool:
        return not usage.is_spent and self._policy.keeps(self._later(usage))

    def gone(self, usage: Usage, was_next: bool) -> None:
        self._policy.gone(self._later(usage), was_next)

    def _later(self, usage: Usage) -> _Later:
        several = min(max(usage.num_hits - 1, 0), MOST_USES)
        return _Later(usage, several * USE_TICKS * self._num_slots)
