"""The pages of one group that may be evicted, in the order of a policy.

A heap whose entries are never taken out but found stale when they come up. Knows nodes and priorities; whether a page
may go now is asked of the page group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any

from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.radix import Node

# Stale entries are swept out once there are this many more than pages.
SPARE_ENTRIES = 64


class IdlePages:
    """Nodes offered for eviction; `is_evictable` says whether one that was offered still can be evicted.

    Of equal priority those with the lower of `tickets` go first.
    """

    def __init__(self, policy: EvictionPolicy, is_evictable: Callable[[Node], bool], tickets: Iterator[int]) -> None:
        self._policy = policy
        self._is_evictable = is_evictable
        self._entries: list[tuple[Any, int, Node]] = []
        self._tickets = tickets

    def offer(self, node: Node, num_pages: int) -> None:
        """Enter an evictable node; the group holds `num_pages`."""
        if len(self._entries) > 2 * num_pages + SPARE_ENTRIES:
            self._entries = [entry for entry in self._entries if self._is_current(entry)]
            heapify(self._entries)
        heappush(self._entries, (self._policy.priority(node), next(self._tickets), node))

    def pop(self) -> Node | None:
        """The evictable node that the policy puts first, or None."""
        while self._entries:
            entry = heappop(self._entries)
            if self._is_current(entry):
                return entry[2]
        return None

    def top(self) -> tuple[Any, int, Node] | None:
        """Priority, ticket and node of what `pop` would return, or None."""
        while self._entries and not self._is_current(self._entries[0]):
            heappop(self._entries)
        return self._entries[0] if self._entries else None

    def _is_current(self, entry: tuple[Any, int, Node]) -> bool:
        priority, _, node = entry
        return self._is_evictable(node) and bool(self._policy.priority(node) == priority)
