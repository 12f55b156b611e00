"""Names of pages, for whoever is outside the process: routers, tiers, logs, sessions.

A name is 128 bits of all that decides a page's bytes, the same in every process: what the pages are of, whose they are,
and all tokens up to the page's end. It is made when somebody asks, and stays with the node. Inside the process pages
are found by their tokens, never by a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

from pagoda.cache.prefix.keys import TOKEN_NBYTES, token_key
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.prefix.tree import Node, Root

NAME_NBYTES = 16


class Identity(NamedTuple):
    """What pages are of: a model and its weights, an adapter on them, what a token leaves behind, and how that becomes
    bytes.

    `constants` are those of the format, `positions` says how positions enter keys.
    """

    model: str = ""
    weights: str = ""
    adapter: str = ""
    layout: str = ""
    format: str = ""
    constants: str = ""
    page_tokens: int = 0
    positions: str = ""

    @property
    def digest(self) -> bytes:
        """Of all of it."""
        return blake2b(repr(tuple(self)).encode(), digest_size=NAME_NBYTES).digest()


class PageNames:
    """Names of the pages of one layer group."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def of(self, node: Node) -> bytes:
        """The name of the page at `node`."""
        unnamed: list[Node] = []
        while node.name is None and node.parent is not None:
            unnamed.append(node)
            node = node.parent
        if node.name is None:
            assert isinstance(node, Root)
            node.name = self.before_all(node.namespace)
        name = node.name
        for each in reversed(unnamed):
            each.name = name = name_after(name, each.key)
        return name

    def of_tokens(self, namespace: Namespace, tokens: Sequence[int], with_tail: bool = False) -> Iterator[bytes]:
        """The names of the whole pages of `tokens`, in order; `with_tail` of what is left of them, too."""
        name, key = self.before_all(namespace), token_key(tokens)
        size = self.identity.page_tokens * TOKEN_NBYTES
        for start in range(0, len(key) if with_tail else len(key) - size + 1, size):
            name = name_after(name, key[start : start + size])
            yield name

    def identity_digest(self) -> bytes:
        """Stands for all that pages are of, whoever's they are."""
        return self.identity.digest

    def before_all(self, namespace: Namespace) -> bytes:
        """What the first page of a namespace continues."""
        return blake2b(repr((tuple(self.identity), tuple(namespace))).encode(), digest_size=NAME_NBYTES).digest()


def name_after(name: bytes, key: bytes) -> bytes:
    """The name of the page of tokens `key` that follows the one called `name`."""
    return blake2b(name + key, digest_size=NAME_NBYTES).digest()
