"""Finds, among many keys, the one that shares the most leading tokens with another.

A radix tree of the keys: it branches where they part, so that keys which begin alike are compared once. A few that
begin alike are only listed. Knows tokens only; a key may be the beginning of another.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

from pagoda.cache.prefix.keys import TOKEN_NBYTES, common_tokens

# So many keys that begin alike are compared one by one.
MOST_LISTED = 8


class _Fork:
    """Where keys part that all begin with `prefix`: by their next token, which is empty for a key that ends here.

    Behind a token is a list of keys, or another fork.
    """

    __slots__ = ("forks", "lists", "prefix")

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self.lists: dict[bytes, list[bytes]] = {}
        self.forks: dict[bytes, _Fork] = {}

    def next_token(self, key: bytes) -> bytes:
        depth = len(self.prefix)
        return key[depth : depth + TOKEN_NBYTES]

    def any_key(self) -> bytes:
        fork = self
        while not fork.lists:
            fork = next(iter(fork.forks.values()))
        return next(iter(fork.lists.values()))[0]


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
        while (below := fork.forks.get(token := fork.next_token(key))) is not None:
            if not key.startswith(below.prefix):
                return below.any_key()
            fork = below
        listed = fork.lists.get(token)
        if listed is None:
            return fork.any_key()
        return listed[0] if len(listed) == 1 else max(listed, key=lambda each: common_tokens(each, key))

    def add(self, key: bytes) -> None:
        """Enter a key that is not there."""
        fork = self._top
        while (below := fork.forks.get(token := fork.next_token(key))) is not None:
            if not key.startswith(below.prefix):
                fork.forks[token] = middle = _Fork(_common([below.prefix, key]))
                middle.forks[middle.next_token(below.prefix)] = below
                below = middle
            fork = below
        listed = fork.lists.get(token)
        if listed is None:
            fork.lists[token] = [key]
        elif len(listed) < MOST_LISTED or not token:
            listed.append(key)
        else:
            del fork.lists[token]
            fork.forks[token] = below = _Fork(_common([*listed, key]))
            for each in (*listed, key):
                below.lists.setdefault(below.next_token(each), []).append(each)

    def remove(self, key: bytes) -> None:
        """Take out a key that is there; forks where nothing is left go with it."""
        fork, way = self._top, []
        while (below := fork.forks.get(token := fork.next_token(key))) is not None:
            way.append((fork, token))
            fork = below
        listed = fork.lists[token]
        listed.remove(key)
        if not listed:
            del fork.lists[token]
        while way and not fork.lists and not fork.forks:
            fork, token = way.pop()
            del fork.forks[token]


def _common(keys: list[bytes]) -> bytes:
    """The tokens that all keys begin with."""
    return reduce(lambda left, right: left[: common_tokens(left, right) * TOKEN_NBYTES], keys)
