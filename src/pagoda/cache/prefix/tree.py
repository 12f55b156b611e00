"""The prefix tree: from token ids to sealed pages.

A node is one page and its key is the page's token ids as bytes, so a step down is one dictionary look-up and compares
the tokens themselves, never a digest. Below the last whole page the tree finds the child that shares the most leading
tokens. Knows neither torch nor bytes of pages; which pages are in use is the page group's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

from pagoda.cache.prefix.held import NO_PAGE, Held, Reason
from pagoda.cache.prefix.keys import TOKEN_NBYTES, common_tokens
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.prefix.siblings import Siblings

# Up to this many children are scanned for the longest common prefix; among more it is searched for.
LINEAR_SCAN_CHILDREN = 8


class Node(Held):
    """One sealed page under its parent's prefix.

    A key shorter than a page is the tail of an ended sequence: it has no children and is only ever copied from. Where
    windows move on, a page may be evicted from under those that continue it: then `page` is NO_PAGE. `num_tails` of the
    children are tails, and `siblings` has the keys of all if they are many. Its `name` is for others, once they asked.
    """

    __slots__ = ("_fingerprint", "children", "name", "num_tails", "parent", "siblings")

    def __init__(self, parent: Node | None, key: bytes, page: int) -> None:
        super().__init__(key, page)
        self.parent = parent
        self.children: dict[bytes, Node] = {}
        self.num_tails = 0
        self.siblings: Siblings | None = None
        self.name: bytes | None = None
        self._fingerprint: int | None = None

    @property
    def fingerprint(self) -> int:
        """Of its namespace and all tokens up to its end; made when somebody asks, and kept."""
        unmarked: list[Node] = []
        node = self
        while node._fingerprint is None:
            assert node.parent is not None, "a node that was taken out is asked for nothing new"
            unmarked.append(node)
            node = node.parent
        fingerprint = node._fingerprint
        for each in reversed(unmarked):
            each._fingerprint = fingerprint = fingerprint_after(fingerprint, each.key)
        return fingerprint

    @property
    def recompute_tokens(self) -> int:
        return len(self.key) // TOKEN_NBYTES


def fingerprint_after(parent: int, key: bytes) -> int:
    """The fingerprint of a node of `key` below the one whose fingerprint is `parent`."""
    return hash((parent, key))


class Root(Node):
    """Where a namespace begins: no page, an empty key."""

    __slots__ = ("__weakref__", "namespace")

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(None, b"", NO_PAGE)
        self.namespace = namespace
        self._fingerprint = hash(namespace)


class Watcher(Protocol):
    """Is told which pages can be hit."""

    def stored(self, node: Node) -> None:
        """From now on."""

    def removed(self, node: Node, reason: Reason) -> None:
        """No longer."""


class PrefixMatch(NamedTuple):
    """What the tree holds of a prompt: whole pages on `path`, then `partial_tokens` leading tokens of `partial`."""

    path: list[Node]
    partial: Node | None
    partial_tokens: int

    @property
    def num_tokens(self) -> int:
        num_whole = len(self.path) * len(self.path[0].key) // TOKEN_NBYTES if self.path else 0
        return num_whole + self.partial_tokens

    @property
    def num_encoder_tokens(self) -> int:
        return 0

    @property
    def is_arriving(self) -> bool:
        return False


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
        children = parent.children
        if not children:
            return None, 0
        candidates: Iterable[bytes] = children
        if len(children) > LINEAR_SCAN_CHILDREN:
            if parent.siblings is None:
                parent.siblings = Siblings(children)
            candidates = (parent.siblings.closest(key),)
        best, best_tokens = None, 0
        for candidate in candidates:
            tokens = common_tokens(candidate, key)
            if tokens > best_tokens:
                best, best_tokens = children[candidate], tokens
        return best, best_tokens

    def insert(self, parent: Node, key: bytes, page: int) -> Node:
        """Add a page below `parent`, which must not have a child of that key."""
        children = parent.children
        assert 0 < len(key) <= self._key_nbytes and key not in children
        if not children and parent.parent is None:
            self._planted.add(parent)
        node = children[key] = Node(parent, key, page)
        if parent.siblings is not None:
            parent.siblings.add(key)
        if len(key) < self._key_nbytes:
            parent.num_tails += 1
        self.num_nodes += 1
        return node

    def remove(self, node: Node) -> None:
        """Take a leaf out of the tree."""
        parent = node.parent
        assert parent is not None and not node.children
        del parent.children[node.key]
        if parent.siblings is not None:
            parent.siblings.remove(node.key)
        if len(node.key) < self._key_nbytes:
            parent.num_tails -= 1
        if not parent.children and parent.parent is None:
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
