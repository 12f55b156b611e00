"""Whether a prefix tree agrees with itself and with the page tables in use."""

from __future__ import annotations

from collections.abc import Sequence

from pagoda.cache.prefix.held import NO_PAGE
from pagoda.cache.prefix.tree import Node, PrefixTree
from pagoda.errors import IntegrityError


def check_tree(tree: PrefixTree, nodes: Sequence[Node | None], users: Sequence[int], keeps_all: bool) -> None:
    """Raise IntegrityError unless the tree and the index of its `nodes` by page agree, and `users` of each page."""
    held = [node for node in tree.nodes() if node.page != NO_PAGE]
    if len(held) != sum(node is not None for node in nodes) or any(nodes[node.page] is not node for node in held):
        raise IntegrityError("The prefix tree and the page index name different pages.")
    for node in tree.nodes():
        if node.page == NO_PAGE:
            _check_gap(node, keeps_all)
        elif keeps_all and users[node.page]:
            _check_parent(node, users)


def _check_gap(node: Node, keeps_all: bool) -> None:
    """Only a page behind a window may be missing, and only where others continue it."""
    if keeps_all or not node.children:
        raise IntegrityError("A node of the prefix tree has no page, and nothing that continues it needs it.")


def _check_parent(node: Node, users: Sequence[int]) -> None:
    parent = node.parent
    if parent is not None and parent.page != NO_PAGE and not users[parent.page]:
        raise IntegrityError(f"Page {node.page} is in use but page {parent.page} before it is not.")
