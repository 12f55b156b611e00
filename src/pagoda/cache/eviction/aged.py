"""Values that age, as in the GreedyDual family (Young, SODA 1991; Cao and Irani, USITS 1997).

What goes sets the level from which all that is used later counts. So what was of great use once, and is of none now, is
overtaken in time by what is used today, and nothing has to be counted down.

What was used together counts from one level, though the pages of a prompt are offered one after the other as those
behind them go: else each of them would raise the level for the next, and one long prompt that nobody asks again would
age all others by as many uses as it has pages.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from typing import NamedTuple

from pagoda.cache.eviction.base import EvictionPolicy, Usage


class _Standing(NamedTuple):
    """The level when something was last used, `last_used`."""

    last_used: int
    level: float


class Aged(EvictionPolicy):
    """The least of `value` above the level goes first; of equal ones what was used longest ago."""

    def __init__(self, num_pages: int = 0) -> None:
        self._level = 0.0
        self._levels: OrderedDict[int, float] = OrderedDict()  # by tick, of what may still be held
        self._most_levels = 2 * num_pages + 1

    def over(self, num_pages: int) -> Aged:
        return type(self)(num_pages)

    @abstractmethod
    def value(self, usage: Usage) -> float:
        """What it is worth to keep it."""

    def priority(self, usage: Usage) -> tuple[float, int]:
        if usage.note is None or usage.note.last_used != usage.last_used:
            usage.note = _Standing(usage.last_used, self._level_at(usage.last_used))
        return self._aged(usage), usage.last_used

    def gone(self, usage: Usage, was_next: bool) -> None:
        if was_next:
            self._level = max(self._level, self._aged(usage))

    def _level_at(self, tick: int) -> float:
        """The level when the first of all that was used at `tick` was offered."""
        level = self._levels.setdefault(tick, self._level)
        if len(self._levels) > self._most_levels:
            self._levels.popitem(last=False)
        return level

    def _aged(self, usage: Usage) -> float:
        return float(usage.note.level + self.value(usage))
