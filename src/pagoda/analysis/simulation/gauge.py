"""Reads off caches what they hold and what has gone, in pages and in bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pagoda.analysis.simulation.counts import Counts
from pagoda.cache.cache import Cache
from pagoda.cache.groups.base import CacheGroup
from pagoda.cache.prefix.held import Reason


class Gauge:
    """Of the `caches` of one run, a page of whose groups takes `page_nbytes`; none where that is not known."""

    def __init__(self, caches: Sequence[Cache], page_nbytes: Sequence[int]) -> None:
        self._caches = caches
        self._page_nbytes = page_nbytes or [0] * len(caches[0].groups)
        self._peak_pages = self._peak_nbytes = 0

    def look(self) -> None:
        """Now and then, as a cache that is full stays so."""
        self._peak_pages = max(self._peak_pages, sum(_filled(cache.main) for cache in self._caches))
        held = (_filled(group) * nbytes for cache in self._caches for group, nbytes in self._groups(cache))
        self._peak_nbytes = max(self._peak_nbytes, sum(held))

    def tell(self, counts: Counts) -> None:
        """Enter what was seen of the whole run."""
        self.look()
        counts.peak_pages, counts.peak_nbytes = self._peak_pages, self._peak_nbytes
        evicted = Counter[str]()
        for group, nbytes in (each for cache in self._caches for each in self._groups(cache)):
            for reason in Reason:
                number = group.holdings.num_evicted(reason)
                evicted[reason.value] += number
                counts.evicted_nbytes += number * nbytes
        counts.evicted_pages = dict(evicted)

    def _groups(self, cache: Cache) -> list[tuple[CacheGroup, int]]:
        return list(zip(cache.groups, self._page_nbytes, strict=True))


def _filled(group: CacheGroup) -> int:
    counts = group.holdings.counts
    return counts.total - counts.free
