"""The prefix tree: from token ids to sealed pages.

A node is one page and its key is the page's token ids as bytes, so a step down is one dictionary look-up and compares
the tokens themselves, never a digest. Below the last whole page the tree finds the child that shares the most leading
tokens. Knows neither torch nor bytes of pages; which pages are in use is the page group's business.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

from sortedcontainers import SortedList

from pagoda.cache.namespace import Namespace

TOKEN_TYPE = "i"
TOKEN_NBYTES = array(TOKEN_TYPE).itemsize

# Of roots, and of nodes whose page was evicted while others continue them.
NO_PAGE = -1

# Up to this many children are scanned for the longest common prefix; more are kept in order and searched.
LINEAR_SCAN_CHILDREN = 8


def token_key(tokens: Sequence[int]) -> bytes:
    """The key of a run of token ids."""
    return array(TOKEN_TYPE, tokens).tobytes()


def key_tokens(key: bytes) -> list[int]:
    """The token ids of a key."""
    tokens = array(TOKEN_TYPE)
    tokens.frombytes(key)
    return tokens.tolist()


class Node:
    """One sealed page under its parent's prefix.

    A key shorter than a page is the tail of an ended sequence: it has no children and is only ever copied from. Where
    windows move on, a page may be evicted from under those that continue it: then `page` is NO_PAGE. `num_leases`
    keep it, and so many sequences have begun with it.
    """

    __slots__ = ("children", "key", "last_used", "num_hits", "num_leases", "order", "page", "parent")

    def __init__(self, parent: Node | None, key: bytes, page: int) -> None:
        self.parent = parent
        self.key = key
        self.page = page
        self.last_used = 0
        self.num_hits = 0
        self.num_leases = 0
        self.children: dict[bytes, Node] = {}
        self.order: SortedList[bytes] | None = None

    @property
    def pages(self) -> tuple[int, ...]:
        """All pages that go when the node is evicted."""
        return (self.page,)


class Root(Node):
    """Where a namespace begins: no page, an empty key."""

    __slots__ = ("__weakref__", "namespace")

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(None, b"", NO_PAGE)
        self.namespace = namespace


class Watcher(Protocol):
    """Is told which pages can be hit."""

    def stored(self, node: Node) -> None:
        """From now on."""

    def removed(self, node: Node) -> None:
        """No longer."""


class Unwatched:
    """A watcher that looks away."""

    def stored(self, node: Node) -> None: ...

    def removed(self, node: Node) -> None: ...


class PrefixMatch(NamedTuple):
    """What the tree holds of a prompt: whole pages on `path`, then `partial_tokens` leading tokens of `partial`."""

    path: list[Node]
    partial: Node | None
    partial_tokens: int


class PrefixTree:
    """Sealed pages by their tokens, one root per namespace."""

    def __init__(self, page_tokens: int) -> None:
        self._key_nbytes = page_tokens * TOKEN_NBYTES
        # A root is forgotten once nobody holds it; the tree itself holds those that have pages.
        self._roots: WeakValueDictionary[Namespace, Root] = WeakValueDictionary()
        self._planted: set[Node] = set()
        self.num_nodes = 0

    def root(self, namespace: Namespace) -> Node:
        """The root of `namespace`; namespaces share nothing."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Root(namespace)
        return root

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
        if not parent.children:
            return None, 0
        best, best_tokens = None, 0
        for candidate in _candidates(parent, key):
            tokens = common_tokens(candidate, key)
            if tokens > best_tokens:
                best, best_tokens = parent.children[candidate], tokens
        return best, best_tokens

    def insert(self, parent: Node, key: bytes, page: int) -> Node:
        """Add a page below `parent`, which must not have a child of that key."""
        assert 0 < len(key) <= self._key_nbytes and key not in parent.children
        node = parent.children[key] = Node(parent, key, page)
        if parent.order is not None:
            parent.order.add(key)
        if parent.parent is None:
            self._planted.add(parent)
        self.num_nodes += 1
        return node

    def remove(self, node: Node) -> None:
        """Take a leaf out of the tree."""
        assert node.parent is not None and not node.children
        parent = node.parent
        del parent.children[node.key]
        if parent.order is not None:
            parent.order.remove(node.key)
        if parent.parent is None and not parent.children:
            self._planted.remove(parent)
        node.parent = None
        self.num_nodes -= 1

    def roots(self) -> list[tuple[Namespace, Node]]:
        """Those of namespaces that have pages."""
        return [(namespace, root) for namespace, root in self._roots.items() if root.children]

    def nodes(self) -> Iterator[Node]:
        """Every node but roots, parents before children."""
        for root in self._planted:
            yield from self.below(root)

    def below(self, node: Node) -> Iterator[Node]:
        """Every node that continues the prefix of `node`, parents before children."""
        pending = [node]
        while pending:
            children = pending.pop().children.values()
            yield from children
            pending.extend(children)


def common_tokens(left: bytes, right: bytes) -> int:
    """How many leading tokens two keys share: the highest bit of their difference is in the first that differs."""
    size = min(len(left), len(right))
    difference = int.from_bytes(left[:size], "big") ^ int.from_bytes(right[:size], "big")
    return (size - (difference.bit_length() + 7) // 8) // TOKEN_NBYTES


def _candidates(node: Node, key: bytes) -> Iterable[bytes]:
    """Child keys among which the longest common prefix with `key` is sure to be."""
    if len(node.children) <= LINEAR_SCAN_CHILDREN:
        return node.children
    if node.order is None:
        node.order = SortedList(node.children)
    # In sorted order the longest common prefix stands next to where the key itself would stand.
    position = node.order.bisect_left(key)
    neighbours: list[bytes] = node.order[max(position - 1, 0) : position + 1]
    return neighbours
