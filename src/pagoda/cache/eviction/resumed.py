"""The order of recurrent states, around that of a policy.

A state is of use to those who go on from it: what several have resumed from outlasts what nobody has, of which every
sequence leaves some, and what the one that came from it has left behind goes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pagoda.cache.eviction.base import EvictionPolicy, Usage

# Every use but the first counts like so many ticks for each slot, up to so many uses.
USE_TICKS = 4
MOST_USES = 4


@dataclass(frozen=True)
class _Later:
    """A usage as if it had been last used so many ticks later."""

    usage: Usage
    ticks: int

    @property
    def first_used(self) -> int:
        return self.usage.first_used

    @property
    def last_used(self) -> int:
        return self.usage.last_used + self.ticks

    @property
    def num_hits(self) -> int:
        return self.usage.num_hits

    @property
    def is_spent(self) -> bool:
        return self.usage.is_spent

    @property
    def num_pages(self) -> int:
        return self.usage.num_pages

    @property
    def recompute_tokens(self) -> int:
        return self.usage.recompute_tokens


class Resumed(EvictionPolicy):
    """The order of `policy` over `num_slots` slots."""

    def __init__(self, policy: EvictionPolicy, num_slots: int) -> None:
        self._policy = policy
        self._num_slots = num_slots

    def priority(self, usage: Usage) -> Any:
        several = min(max(usage.num_hits - 1, 0), MOST_USES)
        return not usage.is_spent, self._policy.priority(_Later(usage, several * USE_TICKS * self._num_slots))
