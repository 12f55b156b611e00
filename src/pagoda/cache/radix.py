"""The prefix tree: from token ids to sealed pages.

A node is one page and its key is the page's token ids as bytes, so a step down is one dictionary look-up and compares the
tokens themselves, never a digest. Below the last whole page the tree finds the child that shares the most leading tokens.
Knows neither torch nor bytes of pages; which pages are in use is the page group's business.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from os.path import commonprefix
from typing import NamedTuple

from sortedcontainers import SortedList

TOKEN_TYPE = "i"
TOKEN_NBYTES = array(TOKEN_TYPE).itemsize

# Up to this many children are scanned for the longest common prefix; more are kept in order and searched.
LINEAR_SCAN_CHILDREN = 8


def token_key(tokens: Sequence[int]) -> bytes:
    """The key of a run of token ids."""
    return array(TOKEN_TYPE, tokens).tobytes()


class Node:
    """One sealed page under its parent's prefix. The root of a namespace has no page and an empty key.

    A key shorter than a page is the tail of an ended sequence: it has no children and is only ever copied from.
    """

    __slots__ = ("children", "key", "last_used", "order", "page", "parent")

    def __init__(self, parent: Node | None, key: bytes, page: int) -> None:
        self.parent = parent
        self.key = key
        self.page = page
        self.last_used = 0
        self.children: dict[bytes, Node] = {}
        self.order: SortedList[bytes] | None = None


class PrefixMatch(NamedTuple):
    """What the tree holds of a prompt: whole pages on `path`, then `partial_tokens` leading tokens of `partial`."""

    path: list[Node]
    partial: Node | None
    partial_tokens: int


class PrefixTree:
    """Sealed pages by their tokens, one root per namespace."""

    def __init__(self, page_tokens: int) -> None:
        self._key_nbytes = page_tokens * TOKEN_NBYTES
        self._roots: dict[str, Node] = {}
        self.num_nodes = 0

    def root(self, namespace: str) -> Node:
        """The root of `namespace`; namespaces share nothing."""
        node = self._roots.get(namespace)
        if node is None:
            node = self._roots[namespace] = Node(None, b"", -1)
        return node

    def match(self, root: Node, key: bytes) -> PrefixMatch:
        """The longest prefix of `key` under `root`, to the token."""
        node, path, size = root, [], self._key_nbytes
        start = 0
        while start + size <= len(key) and (child := node.children.get(key[start : start + size])) is not None:
            path.append(child)
            node = child
            start += size
        return PrefixMatch(path, *self.closest(node, key[start : start + size]))

    def closest(self, parent: Node, key: bytes) -> tuple[Node | None, int]:
        """The child of `parent` that shares the most leading tokens with `key`, and how many (none: None, 0)."""
        best, best_tokens = None, 0
        for candidate in _candidates(parent, key):
            tokens = len(commonprefix((candidate, key))) // TOKEN_NBYTES
            if tokens > best_tokens:
                best, best_tokens = parent.children[candidate], tokens
        return best, best_tokens

    def insert(self, parent: Node, key: bytes, page: int) -> Node:
        """Add a page below `parent`, which must not have a child of that key."""
        assert 0 < len(key) <= self._key_nbytes and key not in parent.children
        node = parent.children[key] = Node(parent, key, page)
        if parent.order is not None:
            parent.order.add(key)
        self.num_nodes += 1
        return node

    def remove(self, node: Node) -> None:
        """Take a leaf out of the tree."""
        assert node.parent is not None and not node.children
        parent = node.parent
        del parent.children[node.key]
        if parent.order is not None:
            parent.order.remove(node.key)
        node.parent = None
        self.num_nodes -= 1

    def nodes(self) -> Iterator[Node]:
        """Every node that holds a page, parents before children."""
        pending = list(self._roots.values())
        while pending:
            children = pending.pop().children.values()
            yield from children
            pending.extend(children)


def _candidates(node: Node, key: bytes) -> Iterator[bytes]:
    """Child keys among which the longest common prefix with `key` is sure to be."""
    if not key:
        return
    if len(node.children) <= LINEAR_SCAN_CHILDREN:
        yield from node.children
        return
    if node.order is None:
        node.order = SortedList(node.children)
    # In sorted order the longest common prefix stands next to where the key itself would stand.
    position = node.order.bisect_left(key)
    yield from node.order[max(position - 1, 0) : position + 1]
