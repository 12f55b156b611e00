"""Who holds the pages of one group, and what each tenant can be sure of.

A tenant with a share of the pages has an account; all others have one in common, which is sure of nothing. A page is
pinned while somebody uses, writes or has leased it. The promise is that every account can always pin as many pages as
it is sure of: what others pin beyond their own shares never reaches into it. Knows counts, and the order in which idle
pages go; neither tokens nor page tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.holdings.idle import IdleOrder
from pagoda.cache.prefix.held import Held
from pagoda.cache.prefix.namespace import Namespace
from pagoda.config import DEFAULT_LEASE_SHARE, TenantShare, check_tenants, share_of
from pagoda.errors import IntegrityError


class Account:
    """The pages of one tenant, or of all without a share. `reserved` pages can always be had by it."""

    __slots__ = ("idle", "lease_limit", "num_held", "num_leased", "num_pinned", "reserved")

    def __init__(self, reserved: int, lease_limit: int, idle: IdleOrder) -> None:
        self.reserved = reserved
        self.lease_limit = lease_limit
        self.idle = idle
        self.num_held = 0
        self.num_pinned = 0
        self.num_leased = 0  # under leases, and promised to them

    @property
    def is_over(self) -> bool:
        """Whether others may have to do without pages that it pins."""
        return self.num_pinned > self.reserved


class Accounts:
    """The accounts of one group of `num_pages` pages. Pages are told apart only if a tenant has a share."""

    def __init__(self, num_pages: int, tenants: Mapping[str, TenantShare], policy: EvictionPolicy) -> None:
        check_tenants(tenants)
        tickets = count()
        limit = 0 if tenants else share_of(DEFAULT_LEASE_SHARE, num_pages)
        self.shared = Account(0, limit, IdleOrder(policy, num_pages, tickets))
        self.has_shares = bool(tenants)
        self._tenants = {
            name: Account(
                share_of(share.reserved, num_pages),
                share_of(share.lease_budget, num_pages),
                IdleOrder(policy, num_pages, tickets),
            )
            for name, share in tenants.items()
        }
        self.all = (self.shared, *self._tenants.values())
        self._owners = [self.shared] * (num_pages if tenants else 0)
        self._unreserved = num_pages - sum(account.reserved for account in self.all)
        self._num_over = 0  # pages pinned beyond shares

    def of(self, namespace: Namespace) -> Account:
        return self._tenants.get(namespace.tenant, self.shared) if self.has_shares else self.shared

    def owner(self, page: int) -> Account:
        return self._owners[page] if self.has_shares else self.shared

    def take(self, page: int, account: Account) -> None:
        """A free page is `account`'s now, and pinned."""
        self._owners[page] = account
        account.num_held += 1
        self.pin(page)

    def give(self, page: int) -> None:
        """A page that is not pinned is free."""
        self._owners[page].num_held -= 1

    def pin(self, page: int) -> None:
        account = self._owners[page]
        account.num_pinned += 1
        self._num_over += account.num_pinned > account.reserved

    def unpin(self, page: int) -> None:
        account = self._owners[page]
        self._num_over -= account.num_pinned > account.reserved
        account.num_pinned -= 1

    def reserved_left(self, account: Account) -> int:
        """Pages it has not pinned yet of those it is sure of."""
        return max(account.reserved - account.num_pinned, 0)

    def num_available(self, account: Account) -> int:
        """Pages that `account` can pin more: what is left of its own share, and of what is nobody's."""
        return self._unreserved - self._num_over + self.reserved_left(account)

    def next_idle(self, asker: Account | None) -> Held | None:
        """What goes first so that `asker` gets a page; None for the asker lets anything go.

        Those lose theirs whose account holds more than its share, and the asker its own once it has all of its share.
        """
        if not self.has_shares:
            top = self.shared.idle.top()
            return None if top is None else top[2]
        eligible = [
            account
            for account in self.all
            if asker is None
            or account.num_held > account.reserved
            or (account is asker and account.num_held == account.reserved)
        ]
        tops = [top for account in eligible if (top := account.idle.top()) is not None]
        return min(tops, key=lambda top: top[:2])[2] if tops else None

    def check_integrity(self, held: Sequence[int], pinned: Sequence[int]) -> None:
        """Raise IntegrityError unless the accounts count the pages `held`, of which `pinned` cannot be had."""
        if not self.has_shares:
            return
        for account in self.all:
            found = (
                sum(self._owners[page] is account for page in held),
                sum(self._owners[page] is account for page in pinned),
            )
            if found != (account.num_held, account.num_pinned):
                counted = (account.num_held, account.num_pinned)
                raise IntegrityError(f"A tenant has (held, pinned) {found} pages; its account says {counted}.")
        over = sum(max(account.num_pinned - account.reserved, 0) for account in self.all)
        if over != self._num_over or over > self._unreserved:
            raise IntegrityError(f"Tenants pin {over} pages beyond their shares, of {self._unreserved} that are free.")
