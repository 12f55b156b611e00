"""What may be evicted of one account, in the order of a policy.

Whatever comes in order is appended to a run, as all does that was used last; what does not goes into a heap. Entries
that something has withdrawn since stay where they are, and are found stale when they come up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any

from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.prefix.held import Held

# Stale entries are swept out once there are this many more than pages.
SPARE_ENTRIES = 64

# Priority, ticket, and what may go.
Entry = tuple[Any, int, Held]


class _Queue:
    """Entries from the lowest to the highest, at most `most_entries`; the stale ones count until they are swept out."""

    __slots__ = ("_heap", "_most_entries", "_run")

    def __init__(self, most_entries: int) -> None:
        self._most_entries = most_entries
        self._run: deque[Entry] = deque()
        self._heap: list[Entry] = []

    def __len__(self) -> int:
        return len(self._run) + len(self._heap)

    def add(self, entry: Entry) -> None:
        if not self._run or entry > self._run[-1]:
            self._run.append(entry)
        else:
            heappush(self._heap, entry)
        if len(self._run) + len(self._heap) > self._most_entries:
            self._run = deque(entry for entry in self._run if entry[2].idle_entry is entry)
            self._heap = [entry for entry in self._heap if entry[2].idle_entry is entry]
            heapify(self._heap)

    def top(self) -> Entry | None:
        """The lowest, or None."""
        run, heap = self._run, self._heap
        while run and run[0][2].idle_entry is not run[0]:
            run.popleft()
        while heap and heap[0][2].idle_entry is not heap[0]:
            heappop(heap)
        if not heap:
            return run[0] if run else None
        return min(run[0], heap[0]) if run else heap[0]


class IdleOrder:
    """The order of `policy` over at most `num_pages`; of equal priority those with the lower of `tickets` go first."""

    def __init__(self, policy: EvictionPolicy, num_pages: int, tickets: Iterator[int]) -> None:
        self._policy = policy.over(num_pages)
        self._queues = [_Queue(2 * num_pages + SPARE_ENTRIES) for _ in range(policy.num_queues)]
        self._tickets = tickets

    def __len__(self) -> int:
        """Entries, stale ones too."""
        return sum(map(len, self._queues))

    def enter(self, held: Held) -> None:
        """Let `held` be evicted, in place of an earlier entry of it."""
        policy = self._policy
        held.idle_entry = entry = (policy.priority(held), next(self._tickets), held)
        self._queues[policy.queue(held)].add(entry)

    def top(self) -> Entry | None:
        """What goes first, or None; what has another chance is entered again on the way."""
        while (entry := self._top()) is not None and self._policy.keeps(entry[2]):
            self.enter(entry[2])
        return entry

    def gone(self, held: Held, was_next: bool) -> None:
        """It is evicted, since it was at the top, or for other reasons."""
        self._policy.gone(held, was_next)

    def _top(self) -> Entry | None:
        for queue in self._policy.queues_in_order():
            entry = self._queues[queue].top()
            if entry is not None:
                return entry
        return None
