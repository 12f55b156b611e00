"""A tier in the memory of the process: records in the order of their last use, the oldest of which go first.

What it hands out is what was put, not a copy: records are never written to again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from pagoda.cache.tiers.base import Put, Tier, TierSettings, TierStats
from pagoda.cache.tiers.record import Bytes
from pagoda.errors import ConfigError

# What Python takes for a record beside its bytes: key, view, array, and their place in the dictionary.
OVERHEAD_NBYTES = 512


class HostTier(Tier):
    """`limit_nbytes` bounds records and what Python takes for them, `overhead_nbytes` each."""

    def __init__(self, limit_nbytes: int | None, overhead_nbytes: int = OVERHEAD_NBYTES) -> None:
        self._limit_nbytes = limit_nbytes
        self._overhead_nbytes = overhead_nbytes
        self._records: OrderedDict[bytes, memoryview] = OrderedDict()
        self._lock = Lock()
        self._nbytes = 0
        self._num_dropped = self._num_refused = self._num_damaged = 0
        self._read_nbytes = self._written_nbytes = 0

    @classmethod
    def open(cls, settings: TierSettings) -> HostTier:
        limit = settings.limit_nbytes
        if limit is not None and limit <= 0:
            raise ConfigError(f"The host tier cannot have {limit} bytes; give it more, or leave it out.")
        return cls(limit)

    @property
    def name(self) -> str:
        return "host"

    @property
    def persists(self) -> bool:
        return False

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        records = self._records
        return [key in records for key in keys]

    def get(self, keys: Sequence[bytes]) -> list[Bytes | None]:
        with self._lock:
            return [self._get(key) for key in keys]

    def put(self, records: Sequence[Put]) -> list[bool]:
        with self._lock:
            return [self._put(each) for each in records]

    def drop(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            for key in keys:
                self._remove(key)

    def damaged(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            self._num_damaged += len(keys)
        self.drop(keys)

    def clear(self) -> None:
        with self._lock:
            self._records.clear()
            self._nbytes = 0

    def stats(self) -> TierStats:
        with self._lock:
            return TierStats(
                num_records=len(self._records),
                nbytes=self._nbytes,
                limit_nbytes=self._limit_nbytes,
                num_dropped=self._num_dropped,
                num_refused=self._num_refused,
                num_damaged=self._num_damaged,
                read_nbytes=self._read_nbytes,
                written_nbytes=self._written_nbytes,
            )

    def flush(self) -> None:
        """Nothing outlives the process."""

    def close(self) -> None:
        self.clear()

    def _get(self, key: bytes) -> memoryview | None:
        record = self._records.get(key)
        if record is not None:
            self._records.move_to_end(key)
            self._read_nbytes += record.nbytes
        return record

    def _put(self, put: Put) -> bool:
        key, record = put
        if key in self._records:
            self._records.move_to_end(key)
            return True
        if not self._make_room(record.nbytes + self._overhead_nbytes):
            self._num_refused += 1
            return False
        self._records[key] = record
        self._nbytes += record.nbytes + self._overhead_nbytes
        self._written_nbytes += record.nbytes
        return True

    def _make_room(self, nbytes: int) -> bool:
        """Whether there is room now for so much."""
        if self._limit_nbytes is None:
            return True
        if nbytes > self._limit_nbytes:
            return False
        while self._nbytes + nbytes > self._limit_nbytes:
            self._remove(next(iter(self._records)))
            self._num_dropped += 1
        return True

    def _remove(self, key: bytes) -> None:
        record = self._records.pop(key, None)
        if record is not None:
            self._nbytes -= record.nbytes + self._overhead_nbytes
