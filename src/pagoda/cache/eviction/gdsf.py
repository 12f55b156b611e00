"""The cost to compute something again, for each page that it takes."""

from pagoda.cache.eviction.aged import Aged
from pagoda.cache.eviction.base import Usage


class GDSF(Aged):
    """Greedy dual size frequency (Cherkasova, HPL-98-69): uses, times tokens to compute again, by pages.

    Whole pages of tokens cost the same, and are ordered as by LFU; tails of ended sequences, recurrent states after
    prompts of different lengths and outputs of encoders do not.
    """

    def value(self, usage: Usage) -> float:
        return (usage.num_hits + 1) * usage.recompute_tokens / usage.num_pages
