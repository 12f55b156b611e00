"""Lets go of what nobody has used for some time, as providers do with cached prompts.

Knows when which prefix was used last. The pages that a lease or a sequence holds stay, whatever the time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pagoda.cache.cache import Cache
from pagoda.cache.groups.base import CacheGroup
from pagoda.cache.groups.prefixes import Prefixes
from pagoda.cache.prefix.held import NO_PAGE, Held, Reason
from pagoda.cache.prefix.tree import Node
from pagoda.cache.sequence import CachedSequence


@dataclass(frozen=True, slots=True)
class _Use:
    """A sequence left at `seconds`, when the clocks of the groups said `ticks`; its prefixes end at `nodes`."""

    seconds: float
    ticks: tuple[int, ...]
    nodes: tuple[Node | None, ...]


class Lifetimes:
    """What was used of `cache`, and goes after `ttl_seconds`."""

    def __init__(self, cache: Cache, ttl_seconds: float) -> None:
        self._cache = cache
        self._ttl_seconds = ttl_seconds
        self._uses: deque[_Use] = deque()

    def left(self, sequence: CachedSequence, seconds: float) -> None:
        """`sequence` was released just now."""
        groups = self._cache.groups
        nodes = tuple(
            table.node if group.prefixes is not None else None
            for group, table in zip(groups, sequence.tables, strict=True)
        )
        self._uses.append(_Use(seconds, tuple(group.holdings.clock for group in groups), nodes))

    def expire(self, seconds: float) -> None:
        """It is `seconds` now."""
        while self._uses and self._uses[0].seconds + self._ttl_seconds <= seconds:
            use = self._uses.popleft()
            for group, ticks, node in zip(self._cache.groups, use.ticks, use.nodes, strict=True):
                if group.prefixes is not None and node is not None:
                    _expire_prefix(group.prefixes, node, ticks)
                elif group.snapshots is not None:
                    for snapshot in [each for each in group.snapshots if each.last_used <= ticks]:
                        _expire(group, snapshot)


def _expire_prefix(prefixes: Prefixes, node: Node, ticks: int) -> None:
    """Let go of the prefix that ends at `node` and at the tails below it, as far as it was not used after `ticks`.

    Who continues a page has used it, so what is old ends a prefix.
    """
    if node.num_tails:
        size = len(node.key) if node.parent is not None else None
        for tail in [each for each in node.children.values() if len(each.key) != size]:
            if tail.last_used <= ticks and not tail.children:
                _expire_held(prefixes, tail)
    while node.parent is not None and node.last_used <= ticks:
        parent = node.parent
        _expire_held(prefixes, node)
        node = parent


def _expire_held(prefixes: Prefixes, node: Node) -> None:
    if node.page != NO_PAGE and prefixes.holdings.is_evictable(node):
        prefixes.holdings.evict(node, Reason.EXPIRED)


def _expire(group: CacheGroup, held: Held) -> None:
    if group.holdings.is_evictable(held):
        group.holdings.evict(held, Reason.EXPIRED)
