"""The page tables of one layer group: what they take over of a prefix, add to, seal, drop and leave behind.

Decides which page holds what; moving bytes is left to the caller, who receives `PageActions`. Knows token ids, page
tables and counts. Imports neither torch nor formats, so a simulator can run it with pages that hold nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.groups.base import NO_ACTIONS, PageActions
from pagoda.cache.groups.compacted import CompactedKey
from pagoda.cache.groups.fill import Fill, FillTarget, PageReach, PagesHeld, first_page, needed_pages
from pagoda.cache.groups.prefixes import Prefixes
from pagoda.cache.groups.rule import KeepRule, window_pages
from pagoda.cache.groups.table import NO_CELLS, NOWHERE, PageTable, ResumePoints
from pagoda.cache.holdings.leased_pages import HoldPlan, Prefix
from pagoda.cache.prefix.held import NO_PAGE, Reason
from pagoda.cache.prefix.keys import TOKEN_NBYTES, token_key
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.prefix.tree import Node, PrefixMatch
from pagoda.config import NO_TENANTS, TenantShare


class PageGroup:
    """Page tables of one layer group over one pool, of which `tenants` may have shares.

    `rule` is what the group keeps of a sequence: pages before its `first_needed` token leave the table, and may be
    evicted though others continue them. With `share` off no page ever enters the tree: every match is empty and
    released pages are free at once.
    """

    snapshots = None

    def __init__(
        self,
        num_pages: int,
        page_tokens: int,
        policy: EvictionPolicy,
        rule: KeepRule,
        share: bool = True,
        tenants: Mapping[str, TenantShare] = NO_TENANTS,
    ) -> None:
        self.page_tokens = page_tokens
        self._rule = rule
        self._share = share
        self._num_sinks = -(-rule.sink_tokens // page_tokens)
        self.prefixes = Prefixes(num_pages, page_tokens, policy, rule.span is None, share, tenants)
        self.holdings = self.prefixes.holdings

    def match(self, namespace: Namespace, key: bytes) -> PrefixMatch:
        """What was stored of the tokens in `key` (`token_key`), to the token; `resumable` says what is left of it."""
        tree = self.prefixes.tree
        return tree.match(tree.root(namespace), key)

    def resumable(self, match: PrefixMatch, num_tokens: int) -> int:
        """The deepest point up to `num_tokens` of `match` before which all is held that later tokens need."""
        num_tokens = min(num_tokens, match.num_tokens)
        while True:
            num_tokens = self._rule.resumable_tokens(num_tokens)
            if self.prefixes.keeps_all:
                return num_tokens
            nodes = [*match.path, match.partial][: -(-num_tokens // self.page_tokens)]
            indices = reversed(self._needed_pages(num_tokens, len(nodes)))
            missing = next((i for i in indices if (node := nodes[i]) is None or node.page == NO_PAGE), None)
            if missing is None:
                return num_tokens
            num_tokens = missing * self.page_tokens

    def attach_cost(self, match: PrefixMatch, num_tokens: int) -> int:
        """How many available pages it takes to take over `num_tokens` of `match`.

        A page that tokens are copied from counts too, since it cannot be evicted for its own copy.
        """
        if not num_tokens:
            return 0
        nodes = [*match.path, match.partial]
        is_pinned, cost = self.holdings.allocator.is_pinned, int(num_tokens % self.page_tokens > 0)
        for index in self._needed_pages(num_tokens, -(-num_tokens // self.page_tokens)):
            node = nodes[index]
            cost += node is not None and not is_pinned(node.page)
        return cost

    def growth_cost(self, num_tokens: int, num_new_tokens: int, step_tokens: int) -> int:
        """The most pages that a table of `num_tokens` takes in addition while more are computed in such steps."""
        size = self.page_tokens
        held = -(-num_tokens // size)
        growth = -(-(num_tokens + num_new_tokens) // size) - held
        if self._rule.span is None:
            return growth
        most = window_pages(self._rule.span, size, min(step_tokens, num_new_tokens), self._rule.sink_tokens)
        num_held = len(self._needed_pages(num_tokens, held))
        return min(growth, max(most - num_held, 0))

    def attach(
        self, namespace: Namespace, match: PrefixMatch, num_tokens: int, points: ResumePoints = NOWHERE
    ) -> tuple[PageTable, PageActions]:
        """A page table that starts with the first `num_tokens` of a fresh `match`, which must be `resumable`.

        Whole pages are shared; tokens of a further page are to be copied into an open page. Raises OutOfPagesError,
        changing nothing, if there is no page for them.
        """
        holdings = self.holdings
        account = holdings.account_of(namespace)
        holdings.check_available(self.attach_cost(match, num_tokens), account)
        whole, rest = divmod(num_tokens, self.page_tokens)
        path, first = match.path[:whole], self._first_page(num_tokens)
        node = (path[-1] if path else self.prefixes.tree.root(namespace)) if self._share else None
        table = PageTable(account, node, first, points)
        holdings.tick()
        try:
            shared = [path[index] for index in self._needed_pages(num_tokens, whole)] if first else path
            holdings.use(shared)
            self._take_over(table, [each.page for each in shared])
            holdings.hit(shared)
            table.num_tokens = whole * self.page_tokens
            if not rest:
                return table, NO_ACTIONS
            source = match.path[whole] if whole < len(match.path) else match.partial
            assert source is not None
            copy = self._copy_open(table, source)
        except BaseException:
            self.release(table)
            raise
        table.num_tokens = num_tokens
        return table, copy

    def pages_of(self, match: PrefixMatch, start: int) -> tuple[int, ...]:
        """The page that begins after `start` tokens of a fresh match."""
        index = start // self.page_tokens
        node = match.path[index] if index < len(match.path) else match.partial
        assert node is not None
        return node.pages

    def reach(self, match: PrefixMatch, num_tokens: int) -> PageReach:
        """How far a prompt of `num_tokens` can be resumed with `match` and what is held elsewhere."""
        whole = frozenset(index for index, node in enumerate(match.path) if node.page != NO_PAGE)
        partial = match.partial_tokens if match.partial is not None and match.partial.page != NO_PAGE else 0
        return PageReach(PagesHeld(whole, len(match.path), partial), self._rule, self.page_tokens, num_tokens)

    def attach_to_fill(
        self, namespace: Namespace, match: PrefixMatch, target: FillTarget, points: ResumePoints = NOWHERE
    ) -> tuple[PageTable, PageActions, list[Fill]]:
        """A table that starts with what `match` has, and has open pages for what `target` brings.

        It has the tokens of the former only, until they are `filled`. Raises OutOfPagesError, changing nothing.
        """
        start = self.resumable(match, target.num_tokens)
        if start == target.num_tokens:
            return *self.attach(namespace, match, start, points), []
        start -= start % self.page_tokens
        stop = -(-target.num_tokens // self.page_tokens)
        indices = [index for index in self._needed_pages(target.num_tokens, stop) if index * self.page_tokens >= start]
        target.check_brings(*(index * self.page_tokens for index in indices))
        account = self.holdings.account_of(namespace)
        self.holdings.check_available(self.attach_cost(match, start) + len(indices), account)
        table, actions = self.attach(namespace, match, start, points)
        pages = self.holdings.allocate(len(indices), account)
        self._skip_to(table, target.num_tokens, dict(zip(indices, pages, strict=True)))
        fills = [Fill(index * self.page_tokens, (page,)) for index, page in zip(indices, pages, strict=True)]
        return table, PageActions([*actions.fresh, *pages], actions.copies), fills

    def filled(self, table: PageTable, tokens: Sequence[int], num_tokens: int) -> None:
        """The pages of a table hold the first `num_tokens` of `tokens` now."""
        if table.num_tokens < num_tokens:
            self.commit(table, tokens, num_tokens)

    def reserve_cost(self, table: PageTable, num_tokens: int) -> int:
        """How many pages `reserve` would allocate."""
        needed = -(-table.num_slots_after(num_tokens) // self.page_tokens) - len(table.pages)
        return max(needed, 0) + self._must_copy(table)

    def reserve(self, table: PageTable, num_tokens: int) -> PageActions:
        """Make room for `num_tokens` more tokens, copying an open page that a fork still shares.

        Raises OutOfPagesError, changing nothing, if the pages cannot be had.
        """
        needed = self.reserve_cost(table, num_tokens)
        if not needed:
            return NO_ACTIONS
        must_copy = self._must_copy(table)
        pages = self.holdings.allocate(needed, table.account)
        copies = []
        if must_copy:
            shared = table.pages[-1]
            copies.append((shared, pages[0]))
            self.prefixes.leave(shared)
            table.pages[-1] = pages[0]
        table.pages.extend(pages[must_copy:])
        return PageActions(pages, copies)

    def give_back(self, table: PageTable, num_tokens: int) -> None:
        """Free the pages that were reserved for more than `num_tokens` to come."""
        needed = -(-table.num_slots_after(num_tokens) // self.page_tokens)
        while len(table.pages) > max(needed, table.num_dropped):
            self.prefixes.leave(table.pages.pop())

    def commit(self, table: PageTable, tokens: Sequence[int], num_tokens: int) -> None:
        """The first `num_tokens` of `tokens` are written now: seal the pages they fill and share them at once.

        If the tree already has a page of the same tokens, the table takes that one and its own copy is freed. What is
        not needed any more leaves the table; what is needed where another sequence has gone its own way counts as used.
        """
        first, last = table.num_tokens // self.page_tokens, num_tokens // self.page_tokens
        if table.num_omitted:
            self._seal_slots(table, num_tokens - table.num_omitted)
        elif first < last:
            self._seal(table, first, token_key(tokens[first * self.page_tokens : last * self.page_tokens]))
        table.num_tokens = num_tokens
        if not self.prefixes.keeps_all:
            branch = table.resume_points.branch_tokens
            self._move_window(table, range(self._first_page(branch), -(-branch // self.page_tokens)))

    def fork(self, table: PageTable) -> PageTable:
        """A second table of the same tokens; a shared open page is copied by whoever writes first.

        Pages that are reserved but not written stay with the first.
        """
        twin = PageTable(table.account, table.node, table.num_dropped, table.resume_points)
        twin.num_tokens, twin.num_omitted = table.num_tokens, table.num_omitted
        twin.num_sinks, twin.cell_starts = table.num_sinks, table.cell_starts
        twin.is_private = table.is_private
        twin.pages = table.pages[: -(-table.num_slots // self.page_tokens)]
        for page in twin.held:
            self.holdings.allocator.retain(page)
        return twin

    def detach(self, table: PageTable) -> None:
        """What is written from now on does not follow from the tokens alone: keep it from others.

        Pages that are full stay hittable.
        """
        table.node, table.is_private = None, True

    def num_saved(self, table: PageTable, num_slots: int) -> int:
        """How many more pages others could have if a table were left so many of its tokens; less than 0 if fewer."""
        allocator = self.holdings.allocator
        own = sum(allocator.references(page) == 1 and not allocator.is_leased(page) for page in table.held)
        return own - -(-num_slots // self.page_tokens)

    def compact(
        self,
        table: PageTable,
        tokens: Sequence[int],
        num_slots: int,
        cell_starts: array[int] = NO_CELLS,
        key: CompactedKey | None = None,
    ) -> PageActions:
        """Give up the pages of a table of `tokens` for others, which are to hold `num_slots` of its tokens.

        They are packed if there are `cell_starts`. Nobody else has them, unless there is a `key` by which they can be
        found. What others use, or may hit, stays. Raises OutOfPagesError if there are not enough; then it has no pages.
        """
        assert 0 < num_slots < table.num_slots, "fewer than before"
        assert not table.cell_starts, "what is packed is not packed again"
        assert not cell_starts or num_slots % self.page_tokens == 0, "packed pages are full"
        self.holdings.tick()
        self._keep_tail(table, tokens)
        self.detach(table)
        while table.pages:
            self.prefixes.leave(table.pages.pop())
        pages = self.holdings.allocate(-(-num_slots // self.page_tokens), table.account)
        table.pages.extend(pages)
        table.num_omitted, table.cell_starts = table.num_tokens - num_slots, cell_starts
        for page in pages[: num_slots // self.page_tokens]:
            self.holdings.allocator.seal(page)
        kept = self.prefixes.compacted.keep(key, table, self.page_tokens) if key and self._share else NO_ACTIONS
        return PageActions([*pages, *kept.fresh], kept.copies)

    def drop_middle(self, table: PageTable, num_first: int, num_last: int) -> PageActions:
        """Let a compacted table whose pages are full go on with its `num_last` last ones, behind `num_first` new ones.

        Raises OutOfPagesError if there are not enough; then it has its last pages only.
        """
        assert table.is_private, "pages that others may hit would keep those before them"
        assert not table.cell_starts, "packed pages are in no order"
        assert not self.prefixes.compacted.of(table.pages), "what others find stays whole"
        assert table.num_slots == len(table.pages) * self.page_tokens, "no page is open"
        self.holdings.tick()
        last = len(table.pages) - num_last
        for page in table.pages[:last]:
            self.prefixes.leave(page)
        del table.pages[:last]
        table.num_omitted = table.num_tokens - num_last * self.page_tokens
        pages = self.holdings.allocate(num_first, table.account)
        table.pages = array("i", pages) + table.pages
        table.num_omitted -= num_first * self.page_tokens
        for page in pages:
            self.holdings.allocator.seal(page)
        return PageActions(pages, [])

    def release(self, table: PageTable, tokens: Sequence[int] = (), keep: bool = True) -> None:
        """Drop all pages of a table, whose tokens are `tokens`.

        They stay hittable until evicted, an open page by those of its tokens that are written; without `keep` they go
        now.
        """
        self.holdings.tick()
        if keep and tokens:
            self._keep_tail(table, tokens)
        doubted = () if keep else self.prefixes.compacted.of(table.pages)
        while len(table.pages) > table.num_dropped:
            self.prefixes.leave(table.pages.pop())
        while table.num_sinks:
            table.num_sinks -= 1
            self.prefixes.leave(table.pages[table.num_sinks])
        for compacted in doubted:
            self.holdings.evict(compacted, Reason.DOUBT)
        if not keep and table.node is not None:
            self.prefixes.forget(table.node)
        del table.pages[:]
        table.num_tokens = table.num_dropped = table.num_omitted = 0
        table.cell_starts = NO_CELLS

    def plan_lease(self, namespace: Namespace, match: PrefixMatch, prefix: Prefix) -> HoldPlan:
        """The pages of a fresh `match` that are needed to resume within `prefix`, and those of it that are not held.

        A page with some of the last tokens is not held; it must have all of them.
        """
        path, size = match.path, self.page_tokens * TOKEN_NBYTES
        needed = self._needed_pages(prefix.page_tokens, len(path))
        nodes = [path[index] for index in needed if path[index].page != NO_PAGE]
        parent = path[-1] if path else self.prefixes.tree.root(namespace)
        runs = [prefix.key[at : at + size] for at in range(len(path) * size, len(prefix.key), size)]
        partial = match.partial
        if len(runs) == 1 and partial is not None and partial.page != NO_PAGE and partial.key.startswith(runs[0]):
            return HoldPlan(self.holdings.account_of(namespace), [*nodes, partial], parent)
        return HoldPlan(self.holdings.account_of(namespace), nodes, parent if runs else None, runs)

    def check_integrity(self, tables: Sequence[PageTable]) -> None:
        """Raise IntegrityError unless counts, tree and the given (all live) tables agree."""
        users = [0] * self.holdings.counts.total
        for table in tables:
            for page in table.held:
                users[page] += 1
        self.prefixes.check_integrity(users)

    def _seal(self, table: PageTable, index: int, keys: bytes) -> None:
        """Seal the pages from `index` on, which the tokens in `keys` fill."""
        size, seal, insert = self.page_tokens * TOKEN_NBYTES, self.holdings.allocator.seal, self.prefixes.insert
        for start in range(0, len(keys), size):
            page, key = table.pages[index], keys[start : start + size]
            index += 1
            if page == NO_PAGE:
                assert table.node is not None, "only what comes from tiers leaves pages out, for all to share"
                table.node = self.prefixes.pass_over(table.node, key)
                continue
            seal(page)
            if table.node is not None:
                table.node = insert(table.node, key, page)
                table.pages[index - 1] = table.node.page

    def _seal_slots(self, table: PageTable, num_slots: int) -> None:
        """Seal the pages of a compacted table that are full once it has `num_slots`; nobody finds them."""
        for page in table.pages[table.num_slots // self.page_tokens : num_slots // self.page_tokens]:
            self.holdings.allocator.seal(page)

    def _copy_open(self, table: PageTable, source: Node) -> PageActions:
        """Append an open page that is to begin with the bytes of `source`."""
        self.holdings.hit((source,))
        self.holdings.use((source,))  # not to be evicted to make room for its own copy
        try:
            page = self.holdings.allocate(1, table.account)[0]
        finally:
            self.holdings.leave(source)
        table.pages.append(page)
        return PageActions([page], [(source.page, page)])

    def _first_page(self, num_tokens: int) -> int:
        """The first page that a sequence of so many tokens keeps: what later ones need, and its last sealed page."""
        return first_page(self._rule, self.page_tokens, num_tokens)

    def _needed_pages(self, num_tokens: int, stop: int) -> Sequence[int]:
        """Which of the first `stop` pages a sequence of so many tokens keeps."""
        return needed_pages(self._rule, self.page_tokens, num_tokens, stop)

    def _skip_to(self, table: PageTable, num_tokens: int, pages: Mapping[int, int]) -> None:
        """Give a table of fewer tokens those `pages` by index that a sequence of `num_tokens` needs beside its own."""
        first = self._first_page(num_tokens)
        for index in range(table.num_dropped, min(first, len(table.pages))):
            if index < self._num_sinks:
                table.num_sinks = index + 1
            else:
                self.prefixes.leave(table.pages[index])
                table.pages[index] = NO_PAGE
        for index in range(len(table.pages), -(-num_tokens // self.page_tokens)):
            table.pages.append(pages.get(index, NO_PAGE))
            if index < min(self._num_sinks, first):
                table.num_sinks = index + 1
        table.num_dropped = max(table.num_dropped, first)

    def _take_over(self, table: PageTable, pages: Sequence[int]) -> None:
        """The first pages of a new table, which has room for those behind its window: sinks, and then all others."""
        table.num_sinks = min(self._num_sinks, table.num_dropped)
        for index in range(table.num_sinks):
            table.pages[index] = pages[index]
        table.pages.extend(pages[table.num_sinks :])

    def _move_window(self, table: PageTable, used: range) -> None:
        """Drop pages that are behind the window now, those at indices `used` as if they had just been used."""
        first = self._first_page(table.num_tokens)
        for index in range(table.num_dropped, first):
            if index < self._num_sinks:
                table.num_sinks = index + 1
            else:
                self.prefixes.leave(table.pages[index], is_used=index in used)
                table.pages[index] = NO_PAGE
            table.num_dropped = index + 1

    def _must_copy(self, table: PageTable) -> bool:
        return table.num_slots % self.page_tokens > 0 and self.holdings.allocator.references(table.pages[-1]) > 1

    def _keep_tail(self, table: PageTable, tokens: Sequence[int]) -> None:
        """Seal an open page short, unless somebody else writes it or the tree has its tokens already."""
        whole, rest = divmod(table.num_tokens, self.page_tokens)
        if table.node is None or not rest or self.holdings.allocator.references(table.pages[whole]) > 1:
            return
        key = token_key(tokens[table.num_tokens - rest : table.num_tokens])
        if self.prefixes.tree.closest(table.node, key)[1] < rest:
            self.holdings.allocator.seal(table.pages[whole])
            self.prefixes.add(table.node, key, table.pages[whole])
