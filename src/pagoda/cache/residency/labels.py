"""What pages are called in tiers: labels of what is held, and of what a prompt would need.

Knows names and kinds of layer groups. Those of a prompt are made from its tokens alone, on any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import NamedTuple

from pagoda.cache.groups.cross import Entry
from pagoda.cache.prefix.keys import TOKEN_NBYTES
from pagoda.cache.prefix.names import NAME_NBYTES, PageNames, name_after
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.prefix.snapshots import Snapshot
from pagoda.cache.prefix.tree import Node, Root
from pagoda.cache.tiers.record import TENANT_NBYTES, Kind, Label, page_key

NO_NAME = bytes(NAME_NBYTES)


def tenant_digest(tenant: str) -> bytes:
    """Whose a record is, as its label says."""
    return blake2b(tenant.encode(), digest_size=TENANT_NBYTES).digest()


@dataclass(frozen=True)
class Layout:
    """What the records of each layer group are of, and how many tokens are in a page of it."""

    kinds: tuple[Kind, ...]
    page_tokens: tuple[int, ...]

    @cached_property
    def prefix_page_tokens(self) -> int:
        """Of the groups that keep pages of tokens: names are made in their steps."""
        return self.page_tokens[self.kinds.index(Kind.PAGE)]


class PromptLabels:
    """Labels of the records of one prompt, by layer group and the number of tokens they end after."""

    def __init__(self, names: PageNames, layout: Layout, namespace: Namespace, key: bytes) -> None:
        self._kinds = layout.kinds
        self._namespace = namespace
        self._key = key
        self._page_nbytes = layout.prefix_page_tokens * TOKEN_NBYTES
        self._identity = names.identity_digest()
        self._root = names.before_all(namespace)
        self._whole = [self._root]  # names after so many whole pages
        self._tenant = tenant_digest(namespace.tenant)

    def key(self, group: int, end: int) -> bytes:
        """What tiers find a record by."""
        return page_key(group, self._root if self._kinds[group] is Kind.ENCODER else self._name(end))

    def label(self, group: int, end: int) -> Label:
        """The whole label of a record."""
        kind, size = self._kinds[group], self._page_nbytes
        common = (self._identity, self._root, self._tenant, kind, group)
        if kind is Kind.ENCODER:
            return Label(*common, self._root, NO_NAME, self._namespace.num_encoder_tokens, b"")
        before = max(end * TOKEN_NBYTES - 1, 0) // size
        own = self._key[before * size : end * TOKEN_NBYTES]
        return Label(*common, self._name(end), self._after_pages(before), end, own)

    def _name(self, end: int) -> bytes:
        whole, rest = divmod(end * TOKEN_NBYTES, self._page_nbytes)
        name, start = self._after_pages(whole), whole * self._page_nbytes
        return name_after(name, self._key[start : start + rest]) if rest else name

    def _after_pages(self, num_pages: int) -> bytes:
        names, size = self._whole, self._page_nbytes
        while len(names) <= num_pages:
            start = (len(names) - 1) * size
            names.append(name_after(names[-1], self._key[start : start + size]))
        return names[num_pages]


class _Near(NamedTuple):
    """The node that was labelled last, with what it takes a walk to find out."""

    node: Node
    parent: Node
    root: Root
    depth: int


class Labels:
    """Of the pages of layer groups that have this `layout`."""

    def __init__(self, names: PageNames, layout: Layout) -> None:
        self.layout = layout
        self._names = names
        self._identity = names.identity_digest()
        self._near: _Near | None = None

    def of_prompt(self, namespace: Namespace, key: bytes) -> PromptLabels:
        """Labels of what the tokens in `key` need."""
        return PromptLabels(self._names, self.layout, namespace, key)

    def key_of_node(self, group: int, node: Node) -> bytes:
        """What tiers find a page by that stands in a prefix tree."""
        return page_key(group, self._names.of(node))

    def of_node(self, group: int, node: Node) -> Label:
        """The label of a page that stands in a prefix tree."""
        parent = node.parent
        assert parent is not None, "a root has no page"
        above, depth = self._above(node, parent)
        name, before = self._names.of(node), self._names.of(parent)
        return Label(
            identity=self._identity,
            namespace=self._names.of(above),
            tenant=tenant_digest(above.namespace.tenant),
            kind=Kind.PAGE,
            group=group,
            name=name,
            parent=before,
            num_tokens=depth // TOKEN_NBYTES,
            tokens=node.key,
        )

    def _above(self, node: Node, parent: Node) -> tuple[Root, int]:
        """The root above a node, and how many bytes of tokens there are down to its end.

        Pages are sealed from the first on and go from the last on, so it mostly is beside the one before.
        """
        near = self._near
        if near is not None and near.node is parent:
            root, depth = near.root, near.depth + len(node.key)
        elif near is not None and near.parent is node:
            root, depth = near.root, near.depth - len(near.node.key)
        else:
            above, depth = parent, len(node.key)
            while above.parent is not None:
                depth += len(above.key)
                above = above.parent
            assert isinstance(above, Root)
            root = above
        self._near = _Near(node, parent, root, depth)
        return root, depth

    def of_snapshot(self, group: int, snapshot: Snapshot) -> Label:
        """The label of a recurrent state."""
        return self.of_prompt(snapshot.namespace, snapshot.key).label(group, snapshot.num_tokens)

    def of_entry(self, group: int, entry: Entry) -> Label:
        """The label of an encoder's output."""
        return self.of_prompt(entry.namespace, b"").label(group, 0)
