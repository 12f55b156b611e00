"""How long what nobody uses may lie: after that it goes though there is room.

Holdings count in ticks. Here those ticks are noted at which something was used, with the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pagoda.cache.holdings.holdings import Holdings


class _Mark(NamedTuple):
    """At `time` the clocks of all holdings stood at `ticks`."""

    time: float
    ticks: tuple[int, ...]


class Lifetime:
    """What lies in `holdings` goes once nobody has used it for so many `seconds` by `clock`; None: it may lie for ever.

    Time is told in steps of `RESOLUTION` of that, so that few marks are kept.
    """

    RESOLUTION = 1 / 256

    def __init__(self, holdings: Sequence[Holdings], seconds: float | None, clock: Callable[[], float]) -> None:
        self._holdings = tuple(holdings)
        self.seconds = seconds
        self._clock = clock
        self._marks: deque[_Mark] = deque()
        if seconds is not None:
            for each in holdings:
                each.note_ages()

    def mark(self) -> None:
        """Something was used now."""
        if self.seconds is None:
            return
        now, ticks = self._clock(), tuple(each.clock for each in self._holdings)
        marks = self._marks
        # A mark stands for all up to a later time, so nothing goes too early.
        if len(marks) > 1 and now - marks[-2].time < self.seconds * self.RESOLUTION:
            marks.pop()
        marks.append(_Mark(now, ticks))

    def end(self) -> None:
        """Forget what has lain for too long."""
        if self.seconds is None:
            return
        last, before = None, self._clock() - self.seconds
        while self._marks and self._marks[0].time <= before:
            last = self._marks.popleft()
        if last is not None:
            for each, tick in zip(self._holdings, last.ticks, strict=True):
                each.expire(tick)
