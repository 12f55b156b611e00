"""The pages of one layer group between tables: who uses them, where they stand in the prefix tree, and which go first.

Knows nodes, pages and accounts; of page tables only that they take pages and drop them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pagoda.cache.accounts import Account, Accounts
from pagoda.cache.coverage import Coverages
from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.integrity import check_group
from pagoda.cache.pages import PageAllocator, PageTable
from pagoda.cache.radix import NO_PAGE, TOKEN_NBYTES, Node, PrefixTree, Unwatched, Watcher
from pagoda.config import TenantShare
from pagoda.errors import OutOfPagesError


class SharedPages:
    """`num_pages` pages, sealed ones at the nodes of a prefix tree, of which `tenants` may have shares.

    Only leaves may be evicted if the group `keeps_all`; else also pages that others continue. Without `share` nothing
    is to be put into the tree, and pages that nobody uses any more are free.
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
        self.num_evictions = 0
        self.num_doubted = 0
        self.watcher: Watcher = Unwatched()
        self.accounts = Accounts(num_pages, tenants, policy, self._is_evictable)
        self.allocator = PageAllocator(num_pages, self.accounts)
        self.tree = PrefixTree(page_tokens)
        self.leases = Coverages(self.allocator, self._offer, share)
        self._keeps_all = keeps_all
        self._nodes: dict[int, Node] = {}  # page -> its node
        self._clock = 0

    def tick(self) -> None:
        """What is taken and dropped from now on counts as used later than what was before."""
        self._clock += 1

    def check_available(self, num_pages: int, account: Account) -> None:
        """Raise OutOfPagesError unless `account` can have so many pages."""
        if num_pages > self.allocator.available_to(account):
            raise OutOfPagesError(
                f"{num_pages} pages are needed and {self.allocator.available_to(account)} can be had; "
                "wait for a sequence to end or raise kv_cache_memory_bytes."
            )

    def allocate(self, num_pages: int, account: Account) -> list[int]:
        """Open pages, evicting idle ones when short. Raises OutOfPagesError, changing nothing."""
        self.check_available(num_pages, account)
        return [self._allocate(account) for _ in range(num_pages)]

    def take(self, node: Node) -> None:
        """Add a user of the page at `node`."""
        node.last_used = self._clock
        self.allocator.retain(node.page)

    def drop(self, page: int, is_used: bool = True) -> None:
        """Drop a user of `page`. Without users a sealed page may be evicted, and is freed if it is not shared.

        What leaves a window without having been `is_used` keeps its place in the order of eviction: nobody has ever
        resumed there.
        """
        if not self.allocator.release(page) or self.allocator.is_free(page):
            return
        node = self._nodes.get(page)
        if node is None:
            self.allocator.free(page)
            return
        if is_used:
            node.last_used = self._clock
        self._offer(node)

    def insert(self, parent: Node, key: bytes, page: int) -> Node:
        """Put a sealed page that somebody uses below `parent`; the node that stands for its tokens now.

        If another page had these tokens, that one is used instead and `page` dropped.
        """
        existing = parent.children.get(key)
        if existing is None:
            return self.add(parent, key, page)
        if existing.page == NO_PAGE:
            existing.page = page
            self._hold(parent, existing)
        else:
            self.take(existing)
            self.drop(page)
        return existing

    def add(self, parent: Node, key: bytes, page: int) -> Node:
        """Insert a page; a shorter one that holds nothing else makes way, and leases move on to this one."""
        closest, tokens = self.tree.closest(parent, key)
        node = self.tree.insert(parent, key, page)
        self._hold(parent, node)
        if closest is not None and tokens * TOKEN_NBYTES == len(closest.key) and self._is_evictable(closest):
            self._evict(closest)
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
                        self.leases.break_over(each)
                        self._evict(each)
                        self.num_doubted += 1

    def reset(self) -> int:
        """Evict every idle page, none of which may be leased; returns how many."""
        evicted = 0
        while self._evict_one(None):
            evicted += 1
        return evicted

    def check_integrity(self, tables: Sequence[PageTable]) -> None:
        """Raise IntegrityError unless counts, tree, leases and the given (all live) tables agree."""
        check_group(tables, self.allocator, self.tree, self._nodes, self._keeps_all)
        self.leases.check_integrity(list(self.tree.nodes()), self.accounts.all)

    def _allocate(self, account: Account) -> int:
        """One page; which idle one may go for it depends on how many the account holds by then."""
        if not self.allocator.num_free:
            evicted = self._evict_one(account)
            assert evicted, "an idle page was not offered for eviction"
            self.num_evictions += 1
        return self.allocator.allocate(account)

    def _hold(self, parent: Node, node: Node) -> None:
        """`node` below `parent` has a page now."""
        self._nodes[node.page] = node
        self.leases.sealed(parent, node)
        self.watcher.stored(node)

    def _is_idle(self, node: Node) -> bool:
        return node.page != NO_PAGE and not self.allocator.references(node.page)

    def _is_evictable(self, node: Node) -> bool:
        """Whether a node is idle and not leased, and a leaf unless windows move on from what others continue."""
        if self._nodes.get(node.page) is not node or node.num_leases or (self._keeps_all and node.children):
            return False
        return not self.allocator.references(node.page)

    def _offer(self, node: Node) -> None:
        if self._is_evictable(node):
            self.accounts.owner(node.page).idle.offer(node, len(self._nodes))

    def _evict_one(self, asker: Account | None) -> bool:
        """Free the idle page that the policy puts first among those `asker` may have; False if there is none."""
        node = self.accounts.next_idle(asker)
        if node is None:
            return False
        self._evict(node)
        return True

    def _evict(self, node: Node) -> None:
        """Free an idle page; nodes without a page that lead nowhere go, and a parent may become the next to go."""
        self.watcher.removed(node)
        del self._nodes[node.page]
        self.allocator.free(node.page)
        node.page = NO_PAGE
        while node.page == NO_PAGE and not node.children and node.parent is not None:
            parent = node.parent
            self.tree.remove(node)
            node = parent
        if self._keeps_all and node.parent is not None:
            self._offer(node)
