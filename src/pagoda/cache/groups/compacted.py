"""Pages that prefixes were compressed to in one layer group: found whole or not at all, by how that was done.

They stand beside the exact pages and in one order of eviction with them. Knows page tables, tokens and counts; of how a
prefix was compressed only what tells it from others.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pagoda.cache.compression.base import Policy
from pagoda.cache.groups.base import NO_ACTIONS, PageActions
from pagoda.cache.groups.table import PageTable
from pagoda.cache.holdings.accounts import Account
from pagoda.cache.holdings.holdings import Holdings
from pagoda.cache.prefix.held import NO_PAGE, Held, Reason
from pagoda.cache.prefix.keys import TOKEN_NBYTES
from pagoda.cache.prefix.namespace import Namespace
from pagoda.errors import IntegrityError


class CompactedKey(NamedTuple):
    """What decides the bytes of a compressed prefix beside what decides those of exact pages.

    Its tokens, and the `policy` by which layer groups of these indices keep some of them, with its budget in tokens.
    """

    namespace: Namespace
    policy: Policy
    groups: tuple[int, ...]
    tokens: bytes

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) // TOKEN_NBYTES


class Compacted(Held):
    """What a prefix was compressed to. Whoever goes on from it shares its `full` pages, and copies its `tail`, if any.

    It goes once nobody uses its last page: that may be a tail while full pages are in use, which are then their users'
    own. So whatever is idle can be had. Pages are packed if there are `cell_starts` (`PageTable`).
    """

    __slots__ = ("cell_starts", "compacted_key", "full", "num_slots", "shelf", "tail")

    def __init__(self, shelf: CompactedPrefixes, key: CompactedKey, table: PageTable, full: Sequence[int]) -> None:
        super().__init__(key.tokens, full[-1] if full else NO_PAGE)
        self.shelf: CompactedPrefixes = shelf
        self.compacted_key = key
        self.num_slots = table.num_slots
        self.cell_starts: array[int] = table.cell_starts
        self.full = tuple(full)
        self.tail: int | None = None

    @property
    def pages(self) -> tuple[int, ...]:
        """Those that nobody uses."""
        return tuple(page for page in self.all_pages if not self.shelf.is_used(page))

    @property
    def all_pages(self) -> tuple[int, ...]:
        return self.full if self.tail is None else (*self.full, self.tail)

    @property
    def num_pages(self) -> int:
        return len(self.all_pages)

    @property
    def num_tokens(self) -> int:
        return self.compacted_key.num_tokens

    @property
    def recompute_tokens(self) -> int:
        return self.num_tokens

    @property
    def fingerprint(self) -> int:
        return hash(self.compacted_key)


class CompactedPrefixes:
    """Of one group, whose pages are those of `holdings`."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._by_key: dict[CompactedKey, Compacted] = {}
        self._by_page: dict[int, Compacted] = {}

    def __iter__(self) -> Iterator[Compacted]:
        return iter(self._by_key.values())

    @property
    def num_pages(self) -> int:
        return len(self._by_page)

    def find(self, key: CompactedKey) -> Compacted | None:
        return self._by_key.get(key)

    def is_used(self, page: int) -> bool:
        return self._holdings.allocator.is_used(page)

    def keep(self, key: CompactedKey, table: PageTable, page_tokens: int) -> PageActions:
        """Keep what a table was just compacted to, so that others find it, unless it is there already.

        A last page that is not full is copied, since the table goes on to write to it; without a page for that nothing
        is kept.
        """
        num_full, rest = divmod(table.num_slots, page_tokens)
        if key in self._by_key or (rest and not self._holdings.available_to(table.account)):
            return NO_ACTIONS
        self._holdings.tick()  # so that the exact pages go before it
        compacted = Compacted(self, key, table, table.pages[:num_full])
        compacted.first_used = compacted.last_used = self._holdings.clock
        actions = NO_ACTIONS
        if rest:
            [tail] = self._holdings.allocate(1, table.account)
            self._holdings.allocator.seal(tail)
            self._holdings.allocator.release(tail)
            compacted.page = compacted.tail = tail
            actions = PageActions([tail], [(table.pages[num_full], tail)])
        self._by_key[key] = compacted
        self._by_page.update(dict.fromkeys(compacted.all_pages, compacted))
        self._holdings.make_evictable(compacted)
        return actions

    def attach_cost(self, compacted: Compacted) -> int:
        """How many available pages it takes to go on from it; a tail cannot be evicted for its own copy."""
        is_pinned = self._holdings.allocator.is_pinned
        return sum(not is_pinned(page) for page in compacted.full) + (0 if compacted.tail is None else 2)

    def attach(self, compacted: Compacted, account: Account) -> tuple[PageTable, PageActions]:
        """A page table that goes on from it. Raises OutOfPagesError, changing nothing, if there is no page for that."""
        holdings, allocator = self._holdings, self._holdings.allocator
        holdings.check_available(self.attach_cost(compacted), account)
        holdings.tick()
        compacted.num_hits += 1
        compacted.idle_entry = None
        for page in compacted.all_pages:
            allocator.retain(page)
        table = PageTable(account, None)
        table.pages.extend(compacted.full)
        table.num_tokens = compacted.num_tokens
        table.num_omitted = compacted.num_tokens - compacted.num_slots
        table.cell_starts = compacted.cell_starts
        actions = NO_ACTIONS
        if compacted.tail is not None:
            [page] = holdings.allocate(1, account)
            allocator.release(compacted.tail)
            table.pages.append(page)
            actions = PageActions([page], [(compacted.tail, page)])
        holdings.touch(compacted)
        return table, actions

    def left(self, page: int) -> None:
        """Nobody uses `page` any more, which stands in no tree: it is free, unless it is found here."""
        compacted = self._by_page.get(page)
        if compacted is None:
            self._holdings.allocator.free(page)
        elif page == compacted.full[0]:  # tables give up the first one last
            self._holdings.touch(compacted)

    def of(self, pages: Sequence[int]) -> list[Compacted]:
        """What stands in any of `pages`."""
        return list(dict.fromkeys(self._by_page[page] for page in pages if page in self._by_page))

    def is_continued(self, compacted: Compacted) -> bool:  # noqa: ARG002
        """Each is found by itself."""
        return False

    def removed(self, compacted: Compacted, reason: Reason) -> None:  # noqa: ARG002
        del self._by_key[compacted.compacted_key]
        for page in compacted.all_pages:
            del self._by_page[page]
        compacted.page = NO_PAGE

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the indices by key and by page name the same."""
        pages = [(page, compacted) for compacted in self for page in compacted.all_pages]
        if len(pages) != len(self._by_page) or any(self._by_page.get(page) is not each for page, each in pages):
            raise IntegrityError("Two indices of compressed prefixes name different pages.")
