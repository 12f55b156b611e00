"""What there is to see of a `PagedCache`. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from pagoda.cache.holdings.allocator import PageCounts


@dataclass(frozen=True)
class PagedCacheStats:
    """Counts since the start: of `queried_tokens` in calls that begin a sequence, `hit_tokens` were read from pages.

    `computed_tokens` went through the model, those of generated text included. `num_cached_tokens` can be hit now, on
    pages of which there are so many in each group of layers, `nbytes` in all.
    """

    queried_tokens: int
    hit_tokens: int
    computed_tokens: int
    num_cached_tokens: int
    groups: tuple[PageCounts, ...]
    nbytes: int

    @property
    def hit_rate(self) -> float:
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0
