"""What this process has put into a store that belongs to others too: what it may forget there, and what it counts.

Knows keys and sizes alone. The store may have lost any of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from pagoda.cache.tiers.base import TierStats
from pagoda.cache.tiers.record import Bytes

MOST_KEYS = 1 << 18  # some 40 MB; the oldest beyond are left to the store


class Written:
    """Keys in the order of their last use, with at most `limit_nbytes` together. Called from several threads."""

    def __init__(self, limit_nbytes: int | None) -> None:
        self._limit_nbytes = limit_nbytes
        self._nbytes_of: OrderedDict[bytes, int] = OrderedDict()
        self._nbytes = 0
        self._num_dropped, self._num_refused = 0, 0
        self._read_nbytes, self._written_nbytes = 0, 0
        self._lock = Lock()

    def fits(self, nbytes: int) -> bool:
        """Whether a record that takes `nbytes` could be kept at all."""
        return self._limit_nbytes is None or nbytes <= self._limit_nbytes

    def add(self, key: bytes, record: memoryview, nbytes: int) -> list[bytes]:
        """Note a record that takes `nbytes`; those that must go from the store so that all stay within the limit."""
        with self._lock:
            self._written_nbytes += record.nbytes
            self._nbytes += nbytes - self._nbytes_of.pop(key, 0)
            self._nbytes_of[key] = nbytes
            while len(self._nbytes_of) > MOST_KEYS:
                self._nbytes -= self._nbytes_of.popitem(last=False)[1]
            gone = []
            while self._limit_nbytes is not None and self._nbytes > self._limit_nbytes:
                oldest, oldest_nbytes = self._nbytes_of.popitem(last=False)
                self._nbytes -= oldest_nbytes
                gone.append(oldest)
            self._num_dropped += len(gone)
            return gone

    def refused(self, num_records: int) -> None:
        with self._lock:
            self._num_refused += num_records

    def used(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            for key in keys:
                if key in self._nbytes_of:
                    self._nbytes_of.move_to_end(key)

    def read(self, keys: Sequence[bytes], found: Sequence[Bytes | None]) -> None:
        """Note what was found: the store has dropped those that are missing."""
        gone = [key for key, record in zip(keys, found, strict=True) if record is None]
        self.used(keys)
        num_known = self.forget(gone)
        with self._lock:
            self._num_dropped += num_known
            self._read_nbytes += sum(len(record) for record in found if record is not None)

    def forget(self, keys: Sequence[bytes]) -> int:
        """The records are gone; how many of them were these."""
        with self._lock:
            sizes = [self._nbytes_of.pop(key) for key in keys if key in self._nbytes_of]
            self._nbytes -= sum(sizes)
            return len(sizes)

    def take_all(self) -> list[bytes]:
        """All keys, which are forgotten."""
        with self._lock:
            keys = list(self._nbytes_of)
            self._nbytes_of.clear()
            self._nbytes = 0
            return keys

    def stats(self) -> TierStats:
        with self._lock:
            return TierStats(
                num_records=len(self._nbytes_of),
                nbytes=self._nbytes,
                limit_nbytes=self._limit_nbytes,
                num_dropped=self._num_dropped,
                num_refused=self._num_refused,
                read_nbytes=self._read_nbytes,
                written_nbytes=self._written_nbytes,
            )
