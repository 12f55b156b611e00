"""Least recently used."""

from pagoda.cache.eviction.base import EvictionPolicy, Usage


class LRU(EvictionPolicy):
    """What was left, or hit, longest ago goes first."""

    def priority(self, usage: Usage) -> int:
        return usage.last_used
