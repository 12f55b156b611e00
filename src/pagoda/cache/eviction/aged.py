"""Values that age, as in the GreedyDual family (Young, SODA 1991; Cao and Irani, USITS 1997).

What goes sets the level from which all that is used later counts. So what was of great use once, and is of none now, is
overtaken in time by what is used today, and nothing has to be counted down.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from pagoda.cache.eviction.base import EvictionPolicy, Usage


class _Standing(NamedTuple):
    """The level when something was last used, `last_used`."""

    last_used: int
    level: float


class Aged(EvictionPolicy):
    """The least of `value` above the level goes first; of equal ones what was used longest ago."""

    def __init__(self) -> None:
        self._level = 0.0

    def over(self, num_pages: int) -> Aged:  # noqa: ARG002
        return type(self)()

    @abstractmethod
    def value(self, usage: Usage) -> float:
        """What it is worth to keep it."""

    def priority(self, usage: Usage) -> tuple[float, int]:
        if usage.note is None or usage.note.last_used != usage.last_used:
            usage.note = _Standing(usage.last_used, self._level)
        return self._aged(usage), usage.last_used

    def gone(self, usage: Usage, was_next: bool) -> None:
        if was_next:
            self._level = max(self._level, self._aged(usage))

    def _aged(self, usage: Usage) -> float:
        return float(usage.note.level + self.value(usage))
