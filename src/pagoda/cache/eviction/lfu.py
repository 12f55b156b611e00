"""Least frequently used, with dynamic ageing."""

from pagoda.cache.eviction.aged import Aged
from pagoda.cache.eviction.base import Usage


class LFU(Aged):
    """LFU-DA (Arlitt et al., Performance Evaluation Review 27(4), 2000): what the fewest sequences used goes first."""

    def value(self, usage: Usage) -> float:
        return usage.num_hits + 1
