"""Who uses, owns, leases and may evict the pages of one layer group.

Everything held lies in pages (`prefix/held.py`) and stands on a shelf, where it is found: a prefix tree, snapshots, or
outputs of encoders. Knows counts, accounts, leases and the order in which idle pages go; neither tokens nor bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.holdings.accounts import Account, Accounts
from pagoda.cache.holdings.ageing import Ageing
from pagoda.cache.holdings.allocator import PageAllocator, PageCounts
from pagoda.cache.holdings.leased_pages import LeasedPages
from pagoda.cache.prefix.held import NO_PAGE, Held, Reason, Shelf
from pagoda.cache.prefix.namespace import Namespace
from pagoda.config import TenantShare
from pagoda.errors import IntegrityError, OutOfPagesError

logger = logging.getLogger(__name__)


class Keeper(Protocol):
    """Is told what can be found, as soon as its bytes are whole, and what is evicted, while they still are."""

    def held(self, held: Any) -> None:
        """From now on it can be found."""

    def hit(self, things: Sequence[Any]) -> None:
        """A sequence begins with them."""

    def leaves(self, held: Any, reason: Reason) -> None:
        """It is about to go."""


class Holdings:
    """`num_pages` pages, of which `tenants` may have shares; without `share` nothing outlives its users.

    `unit` is what a page is to people.
    """

    def __init__(
        self,
        num_pages: int,
        policy: EvictionPolicy,
        shelf: Shelf,
        share: bool,
        tenants: Mapping[str, TenantShare],
        unit: str = "pages",
    ) -> None:
        self.accounts = Accounts(num_pages, tenants, policy)
        self.allocator = PageAllocator(num_pages, self.accounts)
        self.leases = LeasedPages(self.allocator, self.make_evictable, share)
        self.clock = 0
        self._unit = unit
        self._shelf = shelf
        self._ageing: Ageing | None = None
        self._keeper: Keeper | None = None
        self._num_evicted = dict.fromkeys(Reason, 0)

    @property
    def counts(self) -> PageCounts:
        return self.allocator.counts

    def keep_with(self, keeper: Keeper) -> None:
        """From now on `keeper` is told what comes and goes."""
        self._keeper = keeper

    def can_be_found(self, held: Held) -> None:
        """It has a place on the shelf now, and its pages are sealed."""
        if self._keeper is not None:
            _tell(self._keeper.held, held)

    def num_evicted(self, reason: Reason) -> int:
        """How many pages have gone for `reason` since the start."""
        return self._num_evicted[reason]

    def account_of(self, namespace: Namespace) -> Account:
        return self.accounts.of(namespace)

    def available_to(self, account: Account) -> int:
        """Pages that `account` can have, free or idle."""
        return self.allocator.available_to(account)

    def tick(self) -> None:
        """What is used and left from now on counts as used later than what was before."""
        self.clock += 1

    def check_available(self, num_pages: int, account: Account) -> None:
        """Raise OutOfPagesError unless `account` can have so many pages."""
        available = self.allocator.available_to(account)
        if num_pages > available:
            raise OutOfPagesError(
                f"{num_pages} {self._unit} are needed and {available} can be had; "
                "wait for a sequence to end or raise kv_cache_memory_bytes."
            )

    def allocate(self, num_pages: int, account: Account) -> list[int]:
        """Open pages, evicting what is idle when short. Raises OutOfPagesError, changing nothing."""
        self.check_available(num_pages, account)
        allocator = self.allocator
        pages: list[int] = []
        # Where tenants have shares, what may go for a page depends on how many the account holds by then.
        at_once = 1 if self.accounts.has_shares else num_pages
        while len(pages) < num_pages:
            while allocator.num_free < at_once:
                evicted = self._evict_next(account, Reason.ROOM)
                assert evicted, "nothing idle was offered for eviction"
            pages += allocator.allocate(at_once, account)
        return pages

    def use(self, things: Iterable[Held]) -> None:
        """Add a user to each."""
        retain, clock = self.allocator.retain, self.clock
        for held in things:
            held.idle_entry = None
            held.last_used = clock
            for page in held.pages:
                retain(page)

    def hit(self, things: Sequence[Held]) -> None:
        """A sequence begins with each."""
        for held in things:
            held.num_hits += 1
        if self._keeper is not None:
            _tell(self._keeper.hit, things)

    def leave(self, held: Held) -> None:
        """Drop a user; without any it may be evicted."""
        for page in held.pages:
            self.allocator.release(page)
        self.touch(held)

    def touch(self, held: Held) -> None:
        """It counts as used now."""
        held.last_used = self.clock
        self.make_evictable(held)

    def is_evictable(self, held: Held) -> bool:
        """Whether nobody uses or leases it, and nothing that stays is found through it."""
        page = held.page
        return page != NO_PAGE and not self.allocator.is_pinned(page) and not self._shelf_of(held).is_continued(held)

    def make_evictable(self, held: Held) -> None:
        """Give it its place in the order of eviction, if it may go."""
        if self.is_evictable(held):
            accounts = self.accounts
            account = accounts.owner(held.page) if accounts.has_shares else accounts.shared
            account.idle.enter(held)
            if self._ageing is not None:
                self._ageing.enter(held)

    def note_ages(self) -> None:
        """From now on, while nothing is held yet, what lies here can be asked to `expire`."""
        self._ageing = Ageing(self.counts.total)

    def expire(self, tick: int) -> None:
        """Evict what nobody uses or leases, and nobody has used since `tick`."""
        assert self._ageing is not None
        for held in self._ageing.take_unused_since(tick):
            self.evict(held, Reason.EXPIRED)

    def evict(self, held: Held, reason: Reason) -> None:
        """Free what nobody uses or leases."""
        held.idle_entry = None
        pages = held.pages
        if self._keeper is not None and held.shelf is None:
            _tell(self._keeper.leaves, held, reason)
        self.accounts.owner(held.page).idle.gone(held, was_next=reason is Reason.ROOM)
        self._shelf_of(held).removed(held, reason)
        for page in pages:
            self.allocator.free(page)
        self._num_evicted[reason] += len(pages)

    def evict_all(self, reason: Reason) -> int:
        """Evict all that is idle and not leased; returns how many pages that were."""
        before = self._num_evicted[reason]
        while self._evict_next(None, reason):
            pass
        return self._num_evicted[reason] - before

    def check_integrity(self, things: Iterable[Held], users: Sequence[int]) -> None:
        """Raise IntegrityError unless counts, leases and the order of eviction agree.

        `things` are all that can be found, and so many page tables name each page (`users`).
        """
        self.allocator.check_integrity(list(users))
        held = [each for each in things if each.page != NO_PAGE]
        pages = [page for each in held for page in each.pages]
        if len(set(pages)) != len(pages):
            raise IntegrityError("Two things are held in the same page.")
        if self.counts.idle != sum(not users[page] for page in pages):
            raise IntegrityError("A sealed page without a user holds nothing that anybody can ever hit.")
        for each in held:
            if (each.idle_entry is not None) != self.is_evictable(each):
                raise IntegrityError(f"Page {each.page} may be evicted and nobody offers it, or the other way round.")
        self.leases.check_integrity(held, self.accounts.all)

    def _shelf_of(self, held: Held) -> Shelf:
        return self._shelf if held.shelf is None else held.shelf

    def _evict_next(self, asker: Account | None, reason: Reason) -> bool:
        """Evict what the policy puts first of what `asker` may have; False if there is nothing."""
        held = self.accounts.next_idle(asker)
        if held is None:
            return False
        self.evict(held, reason)
        return True


def _tell(event: Callable[..., None], *arguments: object) -> None:
    """What is not kept elsewhere is only lost."""
    try:
        event(*arguments)
    except Exception:
        logger.exception("What the cache holds could not be kept elsewhere")
