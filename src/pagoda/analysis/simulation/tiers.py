"""Tiers of a simulation: what they hold is decided as the engine's do it, of records that have a size and no bytes.

The host tier is the engine's own. That on disk has the engine's ledger of segments without the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pagoda.cache.residency.admission import WritePolicy
from pagoda.cache.tiers.base import Put, Tier, TierSettings, TierStats
from pagoda.cache.tiers.disk.folder import OVERHEAD_NBYTES as FOLDER_NBYTES
from pagoda.cache.tiers.disk.ledger import Entry, SegmentLedger, SegmentSizes
from pagoda.cache.tiers.disk.segment import FOOTER_NBYTES, NOTE_NBYTES, ROW_NBYTES
from pagoda.cache.tiers.host import OVERHEAD_NBYTES, HostTier
from pagoda.cache.tiers.record import HEADER_NBYTES, Bytes, Label

_NOTHING = np.zeros(1, np.uint8)


@dataclass(frozen=True, kw_only=True)
class TierOptions:
    """Sizes of the tiers (None: there is none), and how much of them is read in a second (None: it takes no time).

    In bytes where it is known of which model the pages are, else in tokens. `write` says when pages go to disk.
    """

    host_size: int | None = None
    disk_size: int | None = None
    host_rate: float | None = None
    disk_rate: float | None = None
    write: WritePolicy = WritePolicy.SEAL

    @property
    def rates(self) -> dict[str, float | None]:
        return {"host": self.host_rate, "disk": self.disk_rate}

    @property
    def sizes(self) -> dict[str, int | None]:
        return {"host": self.host_size, "disk": self.disk_size}

    @property
    def names(self) -> tuple[str, ...]:
        """Of those that there are, the fastest first."""
        return tuple(name for name, size in self.sizes.items() if size is not None)


@dataclass(frozen=True)
class RecordSizes:
    """What records take: a page of group `i` `page_sizes[i]`, and what else there is where `has_bytes`.

    Tokens are told in units of `unit_tokens`. Without bytes sizes are in tokens, and nothing is beside the pages.
    """

    page_sizes: tuple[int, ...]
    unit_tokens: int
    has_bytes: bool

    def of(self, label: Label) -> int:
        size = self.page_sizes[label.group]
        return size + HEADER_NBYTES + len(label.tokens) * self.unit_tokens if self.has_bytes else size


@dataclass(frozen=True)
class SimulatedTiers:
    """Those below one cache."""

    host: HostTier | None
    disk: LedgerTier | None

    @classmethod
    def of(cls, options: TierOptions, has_bytes: bool) -> SimulatedTiers:
        """Empty ones."""
        host = disk = None
        if options.host_size is not None:
            host = HostTier(options.host_size, OVERHEAD_NBYTES if has_bytes else 0)
        if options.disk_size is not None:
            disk = LedgerTier(_disk_sizes(options.disk_size, has_bytes))
        return cls(host, disk)

    @property
    def all(self) -> list[Tier]:
        """The fastest first."""
        return [tier for tier in (self.host, self.disk) if tier is not None]


def record_of(size: int) -> memoryview:
    """So many bytes, all of which are the same one."""
    return np.broadcast_to(_NOTHING, size).data


class LedgerTier(Tier):
    """The bookkeeping of a tier on disk, alone. `rewritten_nbytes` were written again since they had been hit."""

    def __init__(self, sizes: SegmentSizes) -> None:
        self._ledger = SegmentLedger(sizes)
        self._num_dropped = self._num_refused = 0
        self._read_nbytes = self._written_nbytes = 0
        self.rewritten_nbytes = 0

    @classmethod
    def open(cls, settings: TierSettings) -> LedgerTier:
        return cls(_disk_sizes(settings.limit_nbytes or 0, has_bytes=True))

    @property
    def name(self) -> str:
        return "disk"

    @property
    def ledger(self) -> SegmentLedger:
        return self._ledger

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return [key in self._ledger for key in keys]

    def get(self, keys: Sequence[bytes]) -> list[Bytes | None]:
        return [self._get(key) for key in keys]

    def use(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._ledger.use(key)

    def put(self, records: Sequence[Put]) -> list[bool]:
        return [self._put(each.key, each.record.nbytes) for each in records]

    def drop(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            if key in self._ledger:
                self._ledger.forget(key)
                self._append(Entry(key, NOTE_NBYTES, is_drop=True))

    def clear(self) -> None:
        for number in self._ledger.numbers:
            self._ledger.remove(number)

    def stats(self) -> TierStats:
        return TierStats(
            num_records=len(self._ledger),
            nbytes=self._ledger.nbytes,
            limit_nbytes=self._ledger.sizes.limit_nbytes,
            num_dropped=self._num_dropped,
            num_refused=self._num_refused,
            read_nbytes=self._read_nbytes,
            written_nbytes=self._written_nbytes,
        )

    def flush(self) -> None:
        """Nothing outlives the process."""

    def close(self) -> None:
        """Nothing is open."""

    def _get(self, key: bytes) -> memoryview | None:
        place = self._ledger.find(key) if self._ledger.use(key) else None
        if place is None:
            return None
        self._read_nbytes += place.nbytes
        return record_of(place.nbytes)

    def _put(self, key: bytes, nbytes: int) -> bool:
        if self._ledger.use(key):
            return True
        if not self._ledger.takes(nbytes):
            self._num_refused += 1
            return False
        self._append(Entry(key, nbytes))
        self._written_nbytes += nbytes
        return True

    def _append(self, entry: Entry) -> None:
        """As `SegmentLog` does it with files."""
        ledger = self._ledger
        while not ledger.has_room(entry.nbytes):
            number = ledger.numbers[0]
            survivors = ledger.survivors(number)
            self._num_dropped += ledger.remove(number)
            for key, place in survivors:
                if ledger.has_room(place.nbytes):
                    self._to_open(Entry(key, place.nbytes))
                    self._num_dropped -= 1
                    self.rewritten_nbytes += place.nbytes
        self._to_open(entry)

    def _to_open(self, entry: Entry) -> None:
        if self._ledger.needs_segment(entry.nbytes):
            self._ledger.begin()
        self._ledger.append(entry)


def _disk_sizes(limit: int, has_bytes: bool) -> SegmentSizes:
    if has_bytes:
        return SegmentSizes.for_limit(limit - FOLDER_NBYTES, ROW_NBYTES, FOOTER_NBYTES)
    return SegmentSizes.for_limit(limit)
