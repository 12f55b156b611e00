"""S3-FIFO: three queues in order of arrival (Yang et al., SOSP 2023)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from pagoda.cache.eviction.base import EvictionPolicy, Usage

SMALL, MAIN = 0, 1
SMALL_SHARE = 0.1
# Hits in the small queue that it takes to enter the main one, and how many count in the main one.
PROMOTION_HITS = 2
MOST_HITS = 3


@dataclass
class _Standing:
    """Its queue, its place there, and the number of hits that no longer count."""

    queue: int
    place: int
    num_old_hits: int


class S3FIFO(EvictionPolicy):
    """What is new stands in a small queue, and leaves it for the main one if it was hit there, else for good.

    What left is remembered for a while without its bytes: if it comes again, it enters the main queue, where a hit
    earns a second round. `num_pages` are those of both queues.
    """

    num_queues = 2

    def __init__(self, num_pages: int = 0) -> None:
        self._most_main = num_pages - max(int(num_pages * SMALL_SHARE), 1)
        self._most_ghosts = max(self._most_main, 1)
        self._ghosts: OrderedDict[int, None] = OrderedDict()
        self._places = count()
        self._num_main = 0

    def over(self, num_pages: int) -> S3FIFO:
        return S3FIFO(num_pages)

    def priority(self, usage: Usage) -> int:
        if usage.note is None:
            self._enter(usage, MAIN if usage.fingerprint in self._ghosts else SMALL)
            self._ghosts.pop(usage.fingerprint, None)
        place: int = usage.note.place
        return place

    def queue(self, usage: Usage) -> int:
        queue: int = usage.note.queue
        return queue

    def queues_in_order(self) -> Sequence[int]:
        # All that is not in the main queue counts as small: pages that others continue wait for their turn.
        return (MAIN, SMALL) if self._num_main > self._most_main else (SMALL, MAIN)

    def keeps(self, usage: Usage) -> bool:
        standing = usage.note
        num_hits = usage.num_hits - standing.num_old_hits
        if standing.queue == SMALL:
            if num_hits < PROMOTION_HITS:
                return False
            self._leave(usage)
            self._enter(usage, MAIN)
            return True
        if num_hits == 0:
            return False
        # A hit is spent for a round, and those beyond the most that count are as well.
        usage.note = _Standing(MAIN, next(self._places), usage.num_hits - min(num_hits, MOST_HITS) + 1)
        return True

    def gone(self, usage: Usage, was_next: bool) -> None:
        if usage.note is None:
            return
        self._leave(usage)
        if was_next and usage.note.queue == SMALL:
            self._ghosts[usage.fingerprint] = None
            if len(self._ghosts) > self._most_ghosts:
                self._ghosts.popitem(last=False)

    def _enter(self, usage: Usage, queue: int) -> None:
        usage.note = _Standing(queue, next(self._places), usage.num_hits)
        self._num_main += usage.num_pages if queue == MAIN else 0

    def _leave(self, usage: Usage) -> None:
        self._num_main -= usage.num_pages if usage.note.queue == MAIN else 0
