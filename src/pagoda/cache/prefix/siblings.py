"""Finds, among many keys, the one that shares the most leading tokens with another.

A radix tree of the keys: it branches where they part, so that keys which begin alike are compared once. Knows tokens
only; a key may be the beginning of another.
"""

from __future__ import annotations

from collections.abc import Iterable

from pagoda.cache.prefix.keys import TOKEN_NBYTES, common_tokens


class _Fork:
    """Where keys part that all begin with `prefix`: by their next token, which is empty for a key that ends here."""

    __slots__ = ("forks", "keys", "prefix")

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self.keys: dict[bytes, bytes] = {}
        self.forks: dict[bytes, _Fork] = {}

    def next_token(self, key: bytes) -> bytes:
        depth = len(self.prefix)
        return key[depth : depth + TOKEN_NBYTES]

    def any_key(self) -> bytes:
        fork = self
        while not fork.keys:
            fork = next(iter(fork.forks.values()))
        return next(iter(fork.keys.values()))


class Siblings:
    """A set of keys."""

    __slots__ = ("_top",)

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._top = _Fork(b"")
        for key in keys:
            self.add(key)

    def closest(self, key: bytes) -> bytes:
        """The key that shares the most leading tokens with `key`; there must be one."""
        fork = self._top
        while True:
            token = fork.next_token(key)
            below = fork.forks.get(token)
            if below is None:
                found = fork.keys.get(token)
                return fork.any_key() if found is None else found
            if not key.startswith(below.prefix):
                return below.any_key()
            fork = below

    def add(self, key: bytes) -> None:
        """Enter a key that is not there."""
        fork = self._top
        while True:
            token = fork.next_token(key)
            below = fork.forks.get(token)
            if below is None:
                other = fork.keys.pop(token, None)
                if other is None:
                    fork.keys[token] = key
                    return
                middle = _Fork(key[: common_tokens(other, key) * TOKEN_NBYTES])
                middle.keys[middle.next_token(other)] = other
            elif key.startswith(below.prefix):
                fork = below
                continue
            else:
                middle = _Fork(key[: common_tokens(below.prefix, key) * TOKEN_NBYTES])
                middle.forks[middle.next_token(below.prefix)] = below
            middle.keys[middle.next_token(key)] = key
            fork.forks[token] = middle
            return

    def remove(self, key: bytes) -> None:
        """Take out a key that is there; a fork where nothing parts any more goes with it."""
        above, fork = self._top, self._top
        token = fork.next_token(key)
        while (below := fork.forks.get(token)) is not None:
            above, above_token, fork = fork, token, below
            token = fork.next_token(key)
        del fork.keys[token]
        if fork is self._top or len(fork.keys) + len(fork.forks) > 1:
            return
        if fork.keys:
            del above.forks[above_token]
            above.keys[above_token] = fork.any_key()
        else:
            above.forks[above_token] = next(iter(fork.forks.values()))
