"""When what may be evicted was last used, for caches where nothing may lie for ever."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count

from pagoda.cache.prefix.held import Held

# Stale entries are swept out once there are this many more than pages.
SPARE_ENTRIES = 64

Entry = tuple[int, int, Held]


class Ageing:
    """What may be evicted of `num_pages`, by the tick of its last use."""

    def __init__(self, num_pages: int) -> None:
        self._most_entries = 2 * num_pages + SPARE_ENTRIES
        self._heap: list[Entry] = []
        self._tickets = count()

    def enter(self, held: Held) -> None:
        """`held` may be evicted from now on."""
        heappush(self._heap, (held.last_used, next(self._tickets), held))
        if len(self._heap) > self._most_entries:
            newest = {entry[2]: entry for entry in self._heap if _is_current(entry)}
            self._heap = list(newest.values())
            heapify(self._heap)

    def take_unused_since(self, tick: int) -> Iterator[Held]:
        """Those that were last used at `tick` or before; what becomes so on the way comes too."""
        heap = self._heap
        while heap and heap[0][0] <= tick:
            entry = heappop(heap)
            if _is_current(entry):
                yield entry[2]


def _is_current(entry: Entry) -> bool:
    """Whether it may still be evicted, and was not used again."""
    return entry[2].idle_entry is not None and entry[2].last_used == entry[0]
