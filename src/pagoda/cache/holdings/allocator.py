"""Which pages of a pool are free, open or sealed, and how many page tables use each.

    free --allocate--> open --seal--> sealed, in use <--retain / release--> sealed, idle --free--> free

An open page whose bytes come from a tier is in transit until they are there. Counts only: knows neither tokens nor
bytes nor which prefix a page holds.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from pagoda.cache.holdings.accounts import Account, Accounts
from pagoda.errors import IntegrityError


class PageState(IntEnum):
    """A page in use is one that some page table names."""

    FREE = 0
    OPEN = 1
    SEALED = 2


# A byte each, which is compared faster than the name of a state.
FREE, OPEN, SEALED = (int(state) for state in PageState)


class ShownState(IntEnum):
    """What people are told of a page."""

    FREE = 0
    OPEN = 1
    IN_USE = 2
    IDLE = 3
    LEASED = 4  # and idle
    IN_TRANSIT = 5


@dataclass(frozen=True)
class PageCounts:
    """free + open + in_transit + in_use + idle = total, at every step. Of the idle pages `leased` must stay."""

    total: int
    free: int
    open: int
    in_use: int
    idle: int
    leased: int = 0
    in_transit: int = 0

    @property
    def available(self) -> int:
        """Pages that can be had without taking one from a sequence or a lease."""
        return self.free + self.idle - self.leased


class PageAllocator:
    """States and reference counts of `num_pages` pages, and which of them are leased.

    `accounts` are told whose pages are pinned, if that matters to anybody.
    """

    def __init__(self, num_pages: int, accounts: Accounts | None = None) -> None:
        self._accounts = accounts if accounts is not None and accounts.has_shares else None
        self._leased = bytearray(num_pages)
        self._num_leased = 0  # of the idle pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._references = [0] * num_pages
        self._states = bytearray(num_pages)
        self._num_open = 0
        self._num_idle = 0
        self._in_transit: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_available(self) -> int:
        """Pages that can be had by somebody."""
        return len(self._free) + self._num_idle - self._num_leased

    def available_to(self, account: Account) -> int:
        """Pages that `account` can have."""
        return self.num_available if self._accounts is None else self._accounts.num_available(account)

    @property
    def counts(self) -> PageCounts:
        total, free = len(self._references), len(self._free)
        in_use = total - free - self._num_open - self._num_idle
        in_transit = len(self._in_transit)
        return PageCounts(
            *(total, free, self._num_open - in_transit, in_use, self._num_idle, self._num_leased, in_transit)
        )

    def page_states(self, stride: int = 1) -> bytes:
        """The `ShownState` of every page, or of one in `stride`."""
        shown = bytearray(self._states[::stride])
        pairs = zip(self._references[::stride], self._leased[::stride], strict=True)
        for index, (references, leased) in enumerate(pairs):
            if shown[index] == SEALED and not references:
                shown[index] = ShownState.LEASED if leased else ShownState.IDLE
        for page in self._in_transit:
            if page % stride == 0:
                shown[page // stride] = ShownState.IN_TRANSIT
        return bytes(shown)

    def references(self, page: int) -> int:
        return self._references[page]

    def is_used(self, page: int) -> bool:
        """Whether some page table names it."""
        return self._references[page] > 0

    def is_free(self, page: int) -> bool:
        return self._states[page] == FREE

    def allocate(self, num_pages: int, account: Account | None = None) -> list[int]:
        """Take free pages as open pages with one user. Who has them matters only where tenants have shares."""
        left = len(self._free) - num_pages
        pages = self._free[left:]
        pages.reverse()
        del self._free[left:]
        for page in pages:
            self._states[page] = OPEN
            self._references[page] = 1
        self._num_open += num_pages
        if self._accounts is not None:
            assert account is not None
            for page in pages:
                self._accounts.take(page, account)
        return pages

    def depart(self, pages: Collection[int]) -> None:
        """The bytes of open pages are on their way."""
        assert all(self._states[page] == OPEN for page in pages)
        self._in_transit.update(pages)

    def arrive(self, pages: Collection[int]) -> None:
        """The bytes of pages are there, as far as they will be."""
        self._in_transit.difference_update(pages)

    def seal(self, page: int) -> None:
        """Make an open page immutable."""
        assert self._states[page] == OPEN and page not in self._in_transit
        self._states[page] = SEALED
        self._num_open -= 1

    def retain(self, page: int) -> None:
        """Add a user."""
        assert self._states[page] != FREE
        if self._references[page] == 0:
            self._num_idle -= 1
            if self._leased[page]:
                self._num_leased -= 1
            elif self._accounts is not None:
                self._accounts.pin(page)
        self._references[page] += 1

    def release(self, page: int) -> bool:
        """Drop a user; True if it was the last. An open page without a user is free, a sealed one idle."""
        references = self._references[page] - 1
        assert references >= 0
        self._references[page] = references
        if references:
            return False
        if self._leased[page]:
            self._num_leased += 1
        elif self._accounts is not None:
            self._accounts.unpin(page)
        if self._states[page] == OPEN:
            self._num_open -= 1
            self._in_transit.discard(page)
            self._set_free(page)
        else:
            self._num_idle += 1
        return True

    def free(self, page: int) -> None:
        """Give an idle page back."""
        assert self._states[page] == SEALED and self._references[page] == 0 and not self._leased[page]
        self._num_idle -= 1
        self._set_free(page)

    def lease(self, page: int) -> None:
        """From now on a sealed page is not available, even if nobody uses it."""
        assert self._states[page] == SEALED and not self._leased[page]
        self._leased[page] = True
        if self._references[page] == 0:
            self._num_leased += 1
            if self._accounts is not None:
                self._accounts.pin(page)

    def unlease(self, page: int) -> None:
        assert self._leased[page]
        self._leased[page] = False
        if self._references[page] == 0:
            self._num_leased -= 1
            if self._accounts is not None:
                self._accounts.unpin(page)

    def is_leased(self, page: int) -> bool:
        return bool(self._leased[page])

    def is_pinned(self, page: int) -> bool:
        """Whether a page must stay what it is: somebody uses it, or has leased it."""
        return bool(self._references[page] or self._leased[page])

    def check_integrity(self, users: list[int]) -> None:
        """Compare the counts with `users`, the number of page tables that name each page."""
        for page, (state, references) in enumerate(zip(self._states, self._references, strict=True)):
            if references != users[page]:
                raise IntegrityError(f"Page {page} counts {references} users but {users[page]} page tables name it.")
            if references and state == FREE:
                raise IntegrityError(f"Page {page} is free and in use.")
            if not references and state == OPEN:
                raise IntegrityError(f"Page {page} is open but nobody writes it.")
        free = self._states.count(FREE)
        idle = sum(s == SEALED and r == 0 for s, r in zip(self._states, self._references, strict=True))
        found = (free, self._states.count(OPEN), idle)
        if found != (len(self._free), self._num_open, self._num_idle) or len(set(self._free)) != free:
            raise IntegrityError(f"Pages (free, open, idle) are {found}; the counters say {self.counts}.")
        if any(self._states[page] != OPEN for page in self._in_transit):
            raise IntegrityError("A page is in transit and not open.")
        leased = sum(bool(self._leased[page]) for page, count in enumerate(users) if not count)
        if leased != self._num_leased:
            raise IntegrityError(f"{leased} idle pages are leased; the counter says {self._num_leased}.")
        if self._accounts is not None:
            pages = range(len(users))
            held = [page for page in pages if self._states[page] != FREE]
            self._accounts.check_integrity(held, [page for page in pages if self.is_pinned(page)])

    def _set_free(self, page: int) -> None:
        self._states[page] = FREE
        self._free.append(page)
        if self._accounts is not None:
            self._accounts.give(page)
