"""What this process has put into a store that belongs to others too: what it may forget there, and what it counts.

Knows keys and sizes alone. The store may have lost any of them.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

MOST_KEYS = 1 << 18  # some 40 MB; the oldest beyond are left to the store


class Written:
    """Keys in the order of their last use, with at most `limit_nbytes` together. Called from several threads."""

    def __init__(self, limit_nbytes: int | None) -> None:
        self._limit_nbytes = limit_nbytes
        self._nbytes_of: OrderedDict[bytes, int] = OrderedDict()
        self._nbytes = 0
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def __len__(self) -> int:
        return len(self._nbytes_of)

    def fits(self, nbytes: int) -> bool:
        """Whether a record of `nbytes` could be kept at all."""
        return self._limit_nbytes is None or nbytes <= self._limit_nbytes

    def add(self, key: bytes, nbytes: int) -> list[bytes]:
        """Note a record; those that must go from the store so that all stay within the limit."""
        with self._lock:
            self._nbytes += nbytes - self._nbytes_of.pop(key, 0)
            self._nbytes_of[key] = nbytes
            while len(self._nbytes_of) > MOST_KEYS:
                self._nbytes -= self._nbytes_of.popitem(last=False)[1]
            gone = []
            while self._limit_nbytes is not None and self._nbytes > self._limit_nbytes:
                oldest, oldest_nbytes = self._nbytes_of.popitem(last=False)
                self._nbytes -= oldest_nbytes
                gone.append(oldest)
            return gone

    def used(self, key: bytes) -> None:
        with self._lock:
            if key in self._nbytes_of:
                self._nbytes_of.move_to_end(key)

    def forget(self, key: bytes) -> bool:
        """The record is gone; True if it was one of these."""
        with self._lock:
            nbytes = self._nbytes_of.pop(key, None)
            self._nbytes -= nbytes or 0
            return nbytes is not None

    def take_all(self) -> list[bytes]:
        """All keys, which are forgotten."""
        with self._lock:
            keys = list(self._nbytes_of)
            self._nbytes_of.clear()
            self._nbytes = 0
            return keys
