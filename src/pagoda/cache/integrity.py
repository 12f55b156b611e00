"""Whether the bookkeeping of a page group agrees with itself and with the page tables in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pagoda.cache.pages import PageAllocator, PageTable
from pagoda.cache.radix import NO_PAGE, Node, PrefixTree
from pagoda.errors import IntegrityError


def check_group(
    tables: Sequence[PageTable],
    allocator: PageAllocator,
    tree: PrefixTree,
    nodes: Mapping[int, Node],
    keeps_all: bool,
) -> None:
    """Raise IntegrityError unless counts, the tree, the index of its `nodes` by page, and all live `tables` agree."""
    users = [0] * allocator.counts.total
    for table in tables:
        for page in table.held:
            users[page] += 1
    allocator.check_integrity(users)
    held = [node for node in tree.nodes() if node.page != NO_PAGE]
    if len(held) != len(nodes) or any(nodes.get(node.page) is not node for node in held):
        raise IntegrityError("The prefix tree and the page index name different pages.")
    if allocator.counts.idle != sum(users[node.page] == 0 for node in held):
        raise IntegrityError("A sealed page without a user is not in the prefix tree: nobody can ever hit it.")
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
