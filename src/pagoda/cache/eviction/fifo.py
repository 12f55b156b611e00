"""First in, first out."""

from pagoda.cache.eviction.base import EvictionPolicy, Usage


class FIFO(EvictionPolicy):
    """What was written longest ago goes first, however often it was hit."""

    def priority(self, usage: Usage) -> int:
        return usage.first_used
