"""What may be evicted of one account, in the order of a policy.

A heap. Entries that something has withdrawn since stay in it and are found stale when they come up.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any

from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.prefix.held import Held

# Stale entries are swept out once there are this many more than pages.
SPARE_ENTRIES = 64


class IdleOrder:
    """The order of `policy` over at most `num_pages`; of equal priority those with the lower of `tickets` go first."""

    def __init__(self, policy: EvictionPolicy, num_pages: int, tickets: Iterator[int]) -> None:
        self._priority = policy.priority
        self._most_entries = 2 * num_pages + SPARE_ENTRIES
        self._entries: list[tuple[Any, int, Held]] = []
        self._tickets = tickets

    def enter(self, held: Held) -> None:
        """Let `held` be evicted, in place of an earlier entry of it."""
        held.idle_entry = entry = (self._priority(held), next(self._tickets), held)
        heappush(self._entries, entry)
        if len(self._entries) > self._most_entries:
            self._entries = [entry for entry in self._entries if entry[2].idle_entry is entry]
            heapify(self._entries)

    def top(self) -> tuple[Any, int, Held] | None:
        """Priority, ticket and holder of what goes first, or None."""
        entries = self._entries
        while entries and entries[0][2].idle_entry is not entries[0]:
            heappop(entries)
        return entries[0] if entries else None
