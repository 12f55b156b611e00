"""The pages of one layer group: its allocator, its prefix tree and what is evicted when it runs short.

Decides which page holds what; moving bytes is left to the caller, who receives `PageActions`. Knows token ids, page
tables and counts. Imports neither torch nor formats, so a simulator can run it with pages that hold nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, NamedTuple

from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.pages import PageAllocator, PageCounts, PageTable
from pagoda.cache.radix import TOKEN_NBYTES, Node, PrefixMatch, PrefixTree, token_key
from pagoda.errors import IntegrityError, OutOfPagesError


class PageActions(NamedTuple):
    """What must happen to the bytes: `fresh` pages hold nothing yet, then each copy is (from, to)."""

    fresh: list[int]
    copies: list[tuple[int, int]]


class PageGroup:
    """Page tables of one layer group over one pool.

    `resumable_tokens` is the layer group's rule for how much of a match can be taken over. With `share` off no page
    ever enters the tree: every match is empty and released pages are free at once.
    """

    def __init__(
        self,
        num_pages: int,
        page_tokens: int,
        policy: EvictionPolicy,
        resumable_tokens: Callable[[int], int],
        share: bool = True,
    ) -> None:
        self.page_tokens = page_tokens
        self.num_evictions = 0
        self.resumable_tokens = resumable_tokens
        self._share = share
        self._policy = policy
        self._allocator = PageAllocator(num_pages)
        self._tree = PrefixTree(page_tokens)
        self._nodes: dict[int, Node] = {}  # page -> its node
        self._clock = 0
        self._idle_leaves: list[tuple[Any, int, Node]] = []  # a heap; stale entries are skipped when popped
        self._ticket = count()

    @property
    def counts(self) -> PageCounts:
        return self._allocator.counts

    @property
    def num_available(self) -> int:
        return self._allocator.num_available

    def match(self, namespace: str, key: bytes) -> PrefixMatch:
        """What is held of the tokens in `key` (`token_key`), to the token."""
        return self._tree.match(self._tree.root(namespace), key)

    def matched_tokens(self, match: PrefixMatch) -> int:
        return len(match.path) * self.page_tokens + match.partial_tokens

    def attach_cost(self, match: PrefixMatch, num_tokens: int) -> int:
        """How many available pages it takes to take over `num_tokens` of `match`.

        A page that tokens are copied from counts too, since it cannot be evicted for its own copy.
        """
        kept = match.path[: -(-num_tokens // self.page_tokens)]
        rest = num_tokens % self.page_tokens
        if rest and len(match.path) * self.page_tokens < num_tokens and match.partial is not None:
            kept = [*kept, match.partial]
        return sum(self._allocator.references(node.page) == 0 for node in kept) + (rest > 0)

    def attach(self, namespace: str, match: PrefixMatch, num_tokens: int) -> tuple[PageTable, PageActions]:
        """A page table that starts with the first `num_tokens` of a fresh `match`.

        Whole pages are shared; tokens of a further page are to be copied into an open page. Raises OutOfPagesError,
        changing nothing, if there is no page for them.
        """
        self._check_available(self.attach_cost(match, num_tokens))
        whole, rest = divmod(num_tokens, self.page_tokens)
        path = match.path[:whole]
        table = PageTable((path[-1] if path else self._tree.root(namespace)) if self._share else None)
        self._clock += 1
        for node in path:
            self._take(node)
            table.pages.append(node.page)
        table.num_tokens = whole * self.page_tokens
        if not rest:
            return table, PageActions([], [])
        source = match.path[whole] if whole < len(match.path) else match.partial
        assert source is not None
        self._take(source)  # not to be evicted to make room for its own copy
        page = self._allocate(1)[0]
        self._drop(source.page)
        table.pages.append(page)
        table.num_tokens = num_tokens
        return table, PageActions([page], [(source.page, page)])

    def reserve_cost(self, table: PageTable, num_tokens: int) -> int:
        """How many pages `reserve` would allocate."""
        needed = -(-(table.num_tokens + num_tokens) // self.page_tokens) - len(table.pages)
        return max(needed, 0) + self._must_copy(table)

    def reserve(self, table: PageTable, num_tokens: int) -> PageActions:
        """Make room for `num_tokens` more tokens, copying an open page that a fork still shares.

        Raises OutOfPagesError, changing nothing, if the pages cannot be had.
        """
        must_copy = self._must_copy(table)
        pages = self._allocate(self.reserve_cost(table, num_tokens))
        copies = []
        if must_copy:
            shared = table.pages[-1]
            copies.append((shared, pages[0]))
            self._drop(shared)
            table.pages[-1] = pages[0]
        table.pages.extend(pages[must_copy:])
        return PageActions(pages, copies)

    def commit(self, table: PageTable, tokens: Sequence[int], num_tokens: int) -> None:
        """The first `num_tokens` of `tokens` are written now: seal the pages they fill and share them at once.

        If the tree already has a page of the same tokens, the table takes that one and its own copy is freed.
        """
        first, last = table.num_tokens // self.page_tokens, num_tokens // self.page_tokens
        keys = token_key(tokens[first * self.page_tokens : last * self.page_tokens])
        size = self.page_tokens * TOKEN_NBYTES
        for index in range(first, last):
            page = table.pages[index]
            self._allocator.seal(page)
            if table.node is not None:
                start = (index - first) * size
                table.pages[index] = self._insert(table, keys[start : start + size], page)
        table.num_tokens = num_tokens

    def fork(self, table: PageTable) -> PageTable:
        """A second table of the same tokens; a shared open page is copied by whoever writes first.

        Pages that are reserved but not written stay with the first.
        """
        twin = PageTable(table.node)
        twin.num_tokens = table.num_tokens
        twin.pages = table.pages[: -(-table.num_tokens // self.page_tokens)]
        for page in twin.pages:
            self._allocator.retain(page)
        return twin

    def release(self, table: PageTable, tokens: Sequence[int] = (), keep: bool = True) -> None:
        """Drop all pages of a table, whose tokens are `tokens`.

        They stay hittable until evicted, an open page by those of its tokens that are written; without `keep` they go
        now.
        """
        self._clock += 1
        if keep and tokens:
            self._keep_tail(table, tokens)
        for page in reversed(table.pages):
            self._drop(page)
            node = self._nodes.get(page)
            if not keep and node is not None and not self._allocator.references(page):
                self._forget(node)
        del table.pages[:]
        table.num_tokens = 0

    def reset(self) -> int:
        """Evict every idle page; returns how many."""
        evicted = 0
        while self._evict_one():
            evicted += 1
        return evicted

    def check_integrity(self, tables: Sequence[PageTable]) -> None:
        """Raise IntegrityError unless counts, tree and the given (all live) tables agree."""
        users = [0] * self.counts.total
        for table in tables:
            for page in table.pages:
                users[page] += 1
        self._allocator.check_integrity(users)
        nodes = list(self._tree.nodes())
        if len(nodes) != len(self._nodes) or any(self._nodes.get(node.page) is not node for node in nodes):
            raise IntegrityError("The prefix tree and the page index name different pages.")
        for node in nodes:
            used, parent = users[node.page] > 0, node.parent
            if used and parent is not None and parent.page >= 0 and not users[parent.page]:
                raise IntegrityError(f"Page {node.page} is in use but page {parent.page} before it is not.")
        if self.counts.idle != sum(users[node.page] == 0 for node in nodes):
            raise IntegrityError("A sealed page without a user is not in the prefix tree: nobody can ever hit it.")

    def _must_copy(self, table: PageTable) -> bool:
        return table.num_tokens % self.page_tokens > 0 and self._allocator.references(table.pages[-1]) > 1

    def _insert(self, table: PageTable, key: bytes, page: int) -> int:
        """Put a sealed page below the table's node and move on; returns the page that now stands for these tokens."""
        assert table.node is not None
        existing = table.node.children.get(key)
        if existing is None:
            table.node = self._add(table.node, key, page)
            return page
        self._take(existing)
        self._drop(page)
        table.node = existing
        return existing.page

    def _keep_tail(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Seal an open page short, unless somebody else writes it or the tree has its tokens already."""
        whole, rest = divmod(table.num_tokens, self.page_tokens)
        if table.node is None or not rest or self._allocator.references(table.pages[whole]) > 1:
            return
        key = token_key(tokens[table.num_tokens - rest : table.num_tokens])
        if self._tree.closest(table.node, key)[1] < rest:
            self._allocator.seal(table.pages[whole])
            self._add(table.node, key, table.pages[whole])

    def _add(self, parent: Node, key: bytes, page: int) -> Node:
        """Insert a page; a shorter one that holds nothing else makes way."""
        closest, tokens = self._tree.closest(parent, key)
        node = self._nodes[page] = self._tree.insert(parent, key, page)
        if closest is not None and tokens * TOKEN_NBYTES == len(closest.key) and self._is_idle_leaf(closest):
            self._evict(closest)
        return node

    def _take(self, node: Node) -> None:
        node.last_used = self._clock
        self._allocator.retain(node.page)

    def _drop(self, page: int) -> None:
        """Drop a user of `page`. Without users a sealed page may be evicted, and is freed if it is not shared."""
        if not self._allocator.release(page) or self._allocator.is_free(page):
            return
        node = self._nodes.get(page)
        if node is None:
            self._allocator.free(page)
            return
        node.last_used = self._clock
        self._offer(node)

    def _is_idle_leaf(self, node: Node) -> bool:
        return not node.children and not self._allocator.references(node.page)

    def _offer(self, node: Node) -> None:
        """Enter `node` for eviction if it is an idle leaf."""
        if not self._is_idle_leaf(node):
            return
        if len(self._idle_leaves) > 2 * len(self._nodes) + 64:
            self._idle_leaves = [entry for entry in self._idle_leaves if self._is_current(entry)]
            heapify(self._idle_leaves)
        heappush(self._idle_leaves, (self._policy.priority(node), next(self._ticket), node))

    def _is_current(self, entry: tuple[Any, int, Node]) -> bool:
        priority, _, node = entry
        is_held = self._nodes.get(node.page) is node
        return is_held and self._is_idle_leaf(node) and bool(self._policy.priority(node) == priority)

    def _allocate(self, num_pages: int) -> list[int]:
        """Open pages, evicting idle ones when short."""
        self._check_available(num_pages)
        while self._allocator.num_free < num_pages:
            evicted = self._evict_one()
            assert evicted, "an idle page was not offered for eviction"
            self.num_evictions += 1
        return [self._allocator.allocate() for _ in range(num_pages)]

    def _check_available(self, num_pages: int) -> None:
        if num_pages > self._allocator.num_available:
            raise OutOfPagesError(
                f"{num_pages} pages are needed and {self._allocator.num_available} can be had; "
                "wait for a sequence to end or raise kv_cache_memory_bytes."
            )

    def _evict_one(self) -> bool:
        """Free the idle leaf that the policy puts first; False if there is none."""
        while self._idle_leaves:
            entry = heappop(self._idle_leaves)
            if self._is_current(entry):
                self._evict(entry[2])
                return True
        return False

    def _forget(self, node: Node) -> None:
        """Free an idle page and all that continue it, which are idle too."""
        for descendant in reversed([node, *self._tree.below(node)]):
            self._evict(descendant)

    def _evict(self, node: Node) -> None:
        """Free an idle leaf; its parent may become the next one."""
        parent = node.parent
        self._tree.remove(node)
        del self._nodes[node.page]
        self._allocator.free(node.page)
        if parent is not None and parent.page >= 0:
            self._offer(parent)
