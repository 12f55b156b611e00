"""Least recently used."""

from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.radix import Node


class LRU(EvictionPolicy):
    """The page whose last user left, or whose last hit came, longest ago goes first."""

    def priority(self, node: Node) -> int:
        return node.last_used
