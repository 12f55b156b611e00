"""Sealed pages at the nodes of a prefix tree: what one group can be hit on, page by page.

Knows nodes and pages; of page tables only that they use pages and leave them. What prefixes were compressed to stands
beside the tree.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.groups.compacted import CompactedPrefixes
from pagoda.cache.groups.table import PageTable
from pagoda.cache.holdings.holdings import Holdings
from pagoda.cache.holdings.integrity import check_tree
from pagoda.cache.prefix.held import NO_PAGE, Reason
from pagoda.cache.prefix.keys import TOKEN_NBYTES, token_key
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.prefix.outline import Outline, outline
from pagoda.cache.prefix.tree import Node, PrefixMatch, PrefixTree, Watcher
from pagoda.config import TenantShare

logger = logging.getLogger(__name__)


class Prefixes:
    """The pages of `holdings` by the tokens in them and before them.

    Only leaves may be evicted if the group `keeps_all`; else also pages that others continue. Without `share` nothing
    is to be put in, and pages that nobody uses any more are free.
    """

    def __init__(
        self,
        num_pages: int,
        page_tokens: int,
        policy: EvictionPolicy,
        keeps_all: bool,
        share: bool,
        tenants: Mapping[str, TenantShare],
    ) -> None:
        self.holdings = Holdings(num_pages, policy, self, share, tenants)
        self.keeps_all = keeps_all
        self.tree = PrefixTree(page_tokens)
        self.compacted = CompactedPrefixes(self.holdings)
        self._page_tokens = page_tokens
        self._on_stored: tuple[Callable[[Node], None], ...] = ()
        self._on_removed: tuple[Callable[[Node, Reason], None], ...] = ()
        self._nodes: list[Node | None] = [None] * num_pages  # by page

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher`, beside others, which pages can be hit, on the thread that changes them."""
        self._on_stored += (watcher.stored,)
        self.watch_removals(watcher.removed)

    def watch_removals(self, removed: Callable[[Node, Reason], None]) -> None:
        """Call `removed` with each page that can be hit no longer."""
        self._on_removed += (removed,)

    def outline(self, most: int, most_tokens: int, tenant: str | None) -> list[Outline]:
        """Up to `most` branches of the tree of a tenant, or of all (None), each with its first `most_tokens`."""
        return outline(self.tree, self.holdings.allocator.is_used, most, most_tokens, tenant)

    def missing_key(self, namespace: Namespace, match: PrefixMatch, tokens: Sequence[int]) -> object | None:
        """What stands for the first page that `match` lacks of `tokens`: equal for two that would compute the same.

        None if the rest of `tokens` does not fill a page.
        """
        start = len(match.path) * self._page_tokens
        return self._key_after(namespace, match.path[-1] if match.path else None, tokens, start)

    def written_key(self, namespace: Namespace, table: PageTable, tokens: Sequence[int]) -> object | None:
        """The same of the page that the sequence of `table` writes."""
        start = table.num_tokens // self._page_tokens * self._page_tokens
        return None if table.node is None else self._key_after(namespace, table.node, tokens, start)

    def leave(self, page: int, is_used: bool = True) -> None:
        """Drop a user of `page`. Without users a sealed page may be evicted, and is freed if it stands nowhere.

        What leaves a window without having been `is_used` keeps its place in the order of eviction: nobody has ever
        resumed there.
        """
        holdings = self.holdings
        if not holdings.allocator.release(page) or holdings.allocator.is_free(page):
            return
        node = self._nodes[page]
        if node is None:
            self.compacted.left(page)
            return
        if is_used:
            node.last_used = holdings.clock
        if not (self.keeps_all and node.children):
            holdings.make_evictable(node)

    def insert(self, parent: Node, key: bytes, page: int) -> Node:
        """Put a sealed page that somebody uses below `parent`; the node that stands for its tokens now.

        If another page had these tokens, that one is used instead and `page` left.
        """
        existing = parent.children.get(key)
        if existing is None:
            return self.add(parent, key, page)
        if existing.page == NO_PAGE:
            existing.page = page
            self._stand(parent, existing)
        else:
            self.holdings.use((existing,))
            self.leave(page)
        return existing

    def pass_over(self, parent: Node, key: bytes) -> Node:
        """The node of a page that nobody needs, since windows have moved on; something is to be put in below it."""
        existing = parent.children.get(key)
        return self.tree.insert(parent, key, NO_PAGE) if existing is None else existing

    def add(self, parent: Node, key: bytes, page: int) -> Node:
        """Insert a page; a shorter one that holds nothing else makes way, and leases move on to this one."""
        shorter = self._shorter(parent, key) if parent.num_tails else None
        node = self.tree.insert(parent, key, page)
        self._stand(parent, node)
        if shorter is not None and self.holdings.is_evictable(shorter):
            self.holdings.evict(shorter, Reason.SUPERSEDED)
        return node

    def forget(self, node: Node) -> None:
        """Free what nobody uses of the prefix that ends at `node`, and of all that continues it from there.

        Leases over it end.
        """
        path = []
        while node.parent is not None:
            path.append(node)
            node = node.parent
        for first in path:
            if first.page == NO_PAGE or self._is_idle(first):
                for each in reversed([first, *self.tree.below(first)]):
                    if self._is_idle(each):
                        self.holdings.leases.break_over(each)
                        self.holdings.evict(each, Reason.DOUBT)

    def is_continued(self, node: Node) -> bool:
        return self.keeps_all and bool(node.children)

    def removed(self, node: Node, reason: Reason) -> None:
        """Nodes without a page that lead nowhere go, and a parent may become the next to go."""
        for removed in self._on_removed:
            _tell(removed, node, reason)
        self._nodes[node.page] = None
        node.page = NO_PAGE
        while node.page == NO_PAGE and not node.children and node.parent is not None:
            parent = node.parent
            self.tree.remove(node)
            node = parent
        if self.keeps_all and node.parent is not None:
            self.holdings.make_evictable(node)

    def check_integrity(self, users: Sequence[int]) -> None:
        """Raise IntegrityError unless tree, index and holdings agree; so many tables name each page."""
        check_tree(self.tree, self._nodes, users, self.keeps_all)
        self.compacted.check_integrity()
        self.holdings.check_integrity(chain(self.tree.nodes(), self.compacted), users)

    def _key_after(self, namespace: Namespace, node: Node | None, tokens: Sequence[int], start: int) -> object | None:
        """Of the page of `tokens` from `start` on, which follows `node`."""
        stop = start + self._page_tokens
        if stop > len(tokens):
            return None
        return namespace, node if start else None, token_key(tokens[start:stop])

    def _stand(self, parent: Node, node: Node) -> None:
        """`node` below `parent` has a page now."""
        self._nodes[node.page] = node
        node.first_used = self.holdings.clock
        node.note = None
        if self.holdings.leases.anchored:
            self.holdings.leases.sealed(parent, node)
        for stored in self._on_stored:
            _tell(stored, node)
        self.holdings.can_be_found(node)

    def _shorter(self, parent: Node, key: bytes) -> Node | None:
        """The tail below `parent` that holds the first tokens of `key` and nothing else."""
        closest, tokens = self.tree.closest(parent, key)
        return closest if closest is not None and tokens * TOKEN_NBYTES == len(closest.key) else None

    def _is_idle(self, node: Node) -> bool:
        return node.page != NO_PAGE and not self.holdings.allocator.is_used(node.page)


def _tell(event: Callable[..., None], *arguments: object) -> None:
    """What a watcher makes of it is its own business."""
    try:
        event(*arguments)
    except Exception:
        logger.exception("A watcher of the cache failed; what it knows may be wrong from now on")
