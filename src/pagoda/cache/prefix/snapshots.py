"""Copies of recurrent states, found by the tokens that led to them.

A state stands for all tokens before it and for no fewer, so a snapshot is of use where a prompt begins with all of its
tokens. Snapshots are large and few: each keeps its tokens whole, and they are compared. Knows neither what a state is
nor which slots are in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

from sortedcontainers import SortedDict

from pagoda.cache.prefix.held import Held
from pagoda.cache.prefix.keys import TOKEN_NBYTES
from pagoda.cache.prefix.namespace import Namespace


class Snapshot(Held):
    """The state after the tokens in `key` lies in the slot `page`.

    It `is_spent` once somebody has gone on from it, so that it is of use to a second one at most.
    """

    __slots__ = ("is_spent", "namespace")

    def __init__(self, namespace: Namespace, key: bytes, page: int) -> None:
        super().__init__(key, page)
        self.namespace = namespace
        self.is_spent = False

    @property
    def num_tokens(self) -> int:
        return len(self.key) // TOKEN_NBYTES

    @property
    def recompute_tokens(self) -> int:
        return self.num_tokens

    @property
    def fingerprint(self) -> int:
        return hash((self.namespace, self.key))


class Snapshots:
    """Snapshots by namespace, length and digest of their tokens."""

    def __init__(self) -> None:
        self._lengths: dict[Namespace, SortedDict[int, dict[bytes, Snapshot]]] = {}

    def __iter__(self) -> Iterator[Snapshot]:
        for lengths in self._lengths.values():
            for snapshots in lengths.values():
                yield from snapshots.values()

    def match(self, namespace: Namespace, key: bytes) -> list[Snapshot]:
        """Those whose tokens `key` begins with, the shortest first."""
        lengths = self._lengths.get(namespace)
        if lengths is None:
            return []
        found, digest, start = [], blake2b(), 0
        for length in lengths.irange(maximum=len(key)):
            digest.update(key[start:length])
            start = length
            snapshot = lengths[length].get(digest.digest())
            if snapshot is not None and key.startswith(snapshot.key):
                found.append(snapshot)
        return found

    def find(self, namespace: Namespace, key: bytes) -> Snapshot | None:
        """The snapshot of exactly these tokens."""
        lengths = self._lengths.get(namespace)
        found = lengths.get(len(key), {}).get(blake2b(key).digest()) if lengths is not None else None
        return found if found is not None and found.key == key else None

    def add(self, namespace: Namespace, key: bytes, slot: int) -> Snapshot:
        """Enter a snapshot of tokens that have none."""
        snapshot = Snapshot(namespace, key, slot)
        lengths = self._lengths.setdefault(namespace, SortedDict())
        lengths.setdefault(len(key), {})[blake2b(key).digest()] = snapshot
        return snapshot

    def remove(self, snapshot: Snapshot) -> None:
        lengths = self._lengths[snapshot.namespace]
        del lengths[len(snapshot.key)][blake2b(snapshot.key).digest()]
        if not lengths[len(snapshot.key)]:
            del lengths[len(snapshot.key)]
        if not lengths:
            del self._lengths[snapshot.namespace]
