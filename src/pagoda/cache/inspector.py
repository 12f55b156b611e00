"""What people and programs may look at of a cache. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pagoda.cache.cache import Cache
from pagoda.cache.groups.base import CacheGroup
from pagoda.cache.groups.table import PageTable
from pagoda.cache.holdings.allocator import PageCounts
from pagoda.cache.leases import LeaseInfo
from pagoda.cache.prefix.held import Reason
from pagoda.cache.prefix.outline import Outline
from pagoda.cache.prefix.tree import Watcher
from pagoda.cache.residency.residency import TierReport


@dataclass(frozen=True)
class CacheStats:
    """A snapshot: `groups` has the page counts of each layer group. From `hit_tokens` on it counts since the start.

    Pages were evicted to make room, forgotten on request (`reset_pages`), because their content was in doubt, or
    because nobody had used them for too long.
    Running sequences have `omitted_tokens` that are in no slot any more, since they are compressed. What prefixes were
    compressed to lies in `compacted_pages`, used or not, and sequences went on from it `compacted_hits` times.
    `format_loss` is what the format of pages should cost in perplexity, as a share: None where that was not measured.
    What explains misses takes `miss_memory_nbytes` now. `tiers` tell of themselves. Tokens that read a part of
    their pages have read `read_pages` of them, and left `skipped_pages` unread, in a layer that chooses.
    """

    groups: tuple[PageCounts, ...]
    tokens_stored: int
    token_slots_allocated: int
    hit_tokens: int
    queried_tokens: int
    evicted_pages: int
    reset_pages: int = 0
    doubted_pages: int = 0
    expired_pages: int = 0
    revoked_leases: int = 0
    num_leases: int = 0  # now
    omitted_tokens: int = 0
    compacted_pages: int = 0  # now
    compacted_hits: int = 0
    format_loss: float | None = None
    miss_memory_nbytes: int = 0
    tiers: tuple[TierReport, ...] = ()
    read_pages: int = 0
    skipped_pages: int = 0

    @property
    def utilization(self) -> float:
        """Tokens held by running sequences / token slots of the pages allocated to them (group that keeps most)."""
        return self.tokens_stored / self.token_slots_allocated if self.token_slots_allocated else 1.0

    @property
    def hit_rate(self) -> float:
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0


class Inspector:
    """Looks at `cache`, whose format was measured to cost `format_loss`; `miss_nbytes` tells what explains misses,
    `tiers` what lies below, and `reads` how many pages were read and skipped where not all are read.
    """

    def __init__(
        self,
        cache: Cache,
        format_loss: float | None = None,
        miss_nbytes: Callable[[], int] = lambda: 0,
        tiers: Callable[[], Sequence[TierReport]] = tuple,
        reads: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self._cache = cache
        self._tiers = tiers
        self._format_loss = format_loss
        self._miss_nbytes = miss_nbytes
        self._reads = reads

    def stats(self) -> CacheStats:
        cache = self._cache
        cache.expire()
        tables = [each.tables[cache.main_index] for each in cache.sequences]
        tokens_stored, num_pages = _stored(cache.main, tables)
        read_pages, skipped_pages = self._reads()
        return CacheStats(
            groups=tuple(group.holdings.counts for group in cache.groups),
            tokens_stored=tokens_stored,
            token_slots_allocated=num_pages * cache.main.page_tokens,
            hit_tokens=cache.hit_tokens,
            queried_tokens=cache.queried_tokens,
            evicted_pages=self._num_evicted(Reason.ROOM),
            reset_pages=self._num_evicted(Reason.RESET),
            doubted_pages=self._num_evicted(Reason.DOUBT),
            expired_pages=self._num_evicted(Reason.EXPIRED),
            revoked_leases=cache.leases.num_revoked,
            num_leases=cache.leases.num_live,
            omitted_tokens=sum(table.num_omitted for table in tables),
            compacted_pages=sum(
                each.prefixes.compacted.num_pages for each in cache.groups if each.prefixes is not None
            ),
            compacted_hits=cache.num_compacted_hits,
            format_loss=self._format_loss,
            miss_memory_nbytes=self._miss_nbytes(),
            tiers=tuple(self._tiers()),
            read_pages=read_pages,
            skipped_pages=skipped_pages,
        )

    def leases(self) -> list[LeaseInfo]:
        """Every live lease."""
        return self._cache.leases.infos()

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` which pages of the group that keeps most can be hit, on the thread that changes them."""
        if self._cache.main.prefixes is not None:
            self._cache.main.prefixes.watch(watcher)

    def page_states(self, stride: int = 1) -> list[bytes]:
        """The `ShownState` of every page of each group, or of one in `stride`."""
        return [group.holdings.allocator.page_states(stride) for group in self._cache.groups]

    def outline(self, most: int, most_tokens: int, tenant: str | None = None) -> list[Outline]:
        """Up to `most` branches of the prefix tree of a tenant, or of all (None), each with its first `most_tokens`."""
        prefixes = self._cache.main.prefixes
        return [] if prefixes is None else prefixes.outline(most, most_tokens, tenant)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless free + open + in use + idle = total and every count is what the tables say."""
        for index, group in enumerate(self._cache.groups):
            group.check_integrity([sequence.tables[index] for sequence in self._cache.sequences])

    def _num_evicted(self, reason: Reason) -> int:
        return sum(group.holdings.num_evicted(reason) for group in self._cache.groups)


def _stored(group: CacheGroup, tables: Iterable[PageTable]) -> tuple[int, int]:
    """How many tokens running sequences hold in how many pages."""
    size = group.page_tokens
    stored = {
        page: min(size, table.num_slots - index * size)
        for table in tables
        for index, page in zip(table.held_indices, table.held, strict=True)
    }
    return sum(max(tokens, 0) for tokens in stored.values()), len(stored)
