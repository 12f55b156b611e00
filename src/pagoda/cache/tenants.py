"""What tenants can be sure of over all layer groups: whose pages can be had by whom.

Knows the accounts of every group. Does not know who is to have what: the scheduler asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pagoda.cache.groups.base import CacheGroup
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.sequence import CachedSequence, Hit, attach_costs, short_groups


class Tenants:
    """Tenants of one cache. Whether two share an account is the same in every group."""

    def __init__(self, groups: Sequence[CacheGroup]) -> None:
        self._groups = tuple(groups)
        self._accounts = groups[0].holdings.accounts
        self.have_shares = any(group.holdings.accounts.has_shares for group in groups)

    def share_account(self, namespace: Namespace, other: Namespace) -> bool:
        """Whether pages that one of them gives up can be had by the other, whatever anybody's share."""
        return self._accounts.of(namespace) is self._accounts.of(other)

    def is_beyond_share(self, namespace: Namespace) -> bool:
        """Whether its tenant has more pages of some group than it can be sure of."""
        return any(group.holdings.account_of(namespace).is_over for group in self._groups)

    def others_are_beyond_share(self, namespace: Namespace) -> bool:
        """Whether anybody else has: that passes."""
        return any(
            account.is_over and account is not group.holdings.account_of(namespace)
            for group in self._groups
            for account in group.holdings.accounts.all
        )

    def can_free_pages_for(self, other: CachedSequence, sequence: CachedSequence, num_tokens: int) -> bool:
        """Whether `sequence` could have pages of `other` for `num_tokens` more, in some group that is short of them."""
        if self.share_account(other.namespace, sequence.namespace):
            return True
        short = short_groups(self._groups, sequence, num_tokens)
        return any(group.holdings.account_of(other.namespace).is_over for group in short)

    def can_attach_within_share(self, hit: Hit, num_new_tokens: int, step_tokens: int, num_running: int) -> bool:
        """`Cache.can_attach` from what is left of the tenant's own share, which nobody else can ever have.

        `num_running` counts its own sequences.
        """
        costs = attach_costs(self._groups, hit, num_new_tokens, step_tokens)
        return all(
            cost + num_running * growing_pages(group)
            <= group.holdings.accounts.reserved_left(group.holdings.account_of(hit.namespace))
            for group, cost in zip(self._groups, costs, strict=True)
        )

    def pages_left_to(self, running: Sequence[Namespace], group: CacheGroup, namespace: Namespace) -> int:
        """Pages that `namespace` leaves for `running` ones to grow: those of others take their own shares first."""
        accounts = group.holdings.accounts
        own, counts = accounts.of(namespace), Counter(map(accounts.of, running))
        return sum(
            max(number * growing_pages(group) - (0 if account is own else accounts.reserved_left(account)), 0)
            for account, number in counts.items()
        )


def growing_pages(group: CacheGroup) -> int:
    """Pages that a running sequence must find to go on: none where nothing grows."""
    return group.growth_cost(0, 1, 1)
