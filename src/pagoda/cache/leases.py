"""Leases: promises that what is held of a prefix stays until a time.

Knows when leases end, which prefix each is of, and asks every group to keep the pages. Once in force a lease cannot
fail by what others do; it ends at its time, when its own tenant needs the pages more, when the cache is reset, or when
its pages turn out to be in doubt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

from pagoda.cache.groups.base import CacheGroup, resumable
from pagoda.cache.holdings.accounts import Account
from pagoda.cache.holdings.leased_pages import HoldPlan, LeaseHold, Prefix
from pagoda.cache.prefix.keys import TOKEN_NBYTES, common_tokens, key_tokens, token_key
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.tenants import Tenants

MOST_LEASES = 1024  # of one tenant: each costs memory of its own, and time at every hit
SPARE_ENTRIES = 64
SHOWN_TOKENS = 24


@dataclass(frozen=True)
class Breakpoint:
    """A request's wish that the first `num_tokens` of its prompt stay held for so long after they were last used."""

    num_tokens: int
    ttl_seconds: float


@dataclass(frozen=True)
class LeaseResult:
    """What came of a wish. If `granted`, `num_tokens` stay until `expires_at`, on the cache's clock.

    Of these `num_new_tokens` were under no lease before; `new_nbytes` of pages are leased in addition. A prefix with
    recurrent states is resumed after `resume_tokens`.
    """

    granted: bool
    num_tokens: int
    resume_tokens: int
    num_new_tokens: int = 0
    new_nbytes: int = 0
    expires_at: float | None = None


@dataclass(frozen=True)
class LeaseInfo:
    """A live lease, for people who look. `nbytes` counts pages that other leases keep as well.

    `first_tokens` are the first `SHOWN_TOKENS` of what it keeps.
    """

    tenant: str
    first_tokens: tuple[int, ...]
    num_tokens: int
    nbytes: int
    expires_in_seconds: float
    age_seconds: float
    ttl_seconds: float
    num_hits: int


@dataclass(eq=False)
class Lease:
    """One promise, with what it keeps in each group."""

    namespace: Namespace
    prefix: Prefix
    holds: tuple[LeaseHold, ...]
    ttl_seconds: float
    created_at: float
    expires_at: float
    num_hits: int = 0
    is_live: bool = True


class Leases:
    """All leases over the groups of one cache."""

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        page_nbytes: Sequence[int],
        tenants: Tenants,
        clock: Callable[[], float],
    ) -> None:
        self._groups = tuple(groups)
        self._page_nbytes = tuple(page_nbytes)
        self._tenants = tenants
        self._clock = clock
        self._by_prefix: dict[Namespace, dict[bytes, Lease]] = {}
        self._ends: list[tuple[float, int, Lease]] = []  # one entry per lease, with a time at which it may end
        self._tickets = count()
        self._num_by_account: Counter[Account] = Counter()
        self._on_lapse: Callable[[Lease], None] = lambda _: None
        self.num_live = 0
        self.num_revoked = 0

    def __iter__(self) -> Iterator[Lease]:
        for leases in self._by_prefix.values():
            yield from leases.values()

    def grant(self, namespace: Namespace, tokens: Sequence[int], wish: Breakpoint) -> LeaseResult:
        """Promise that what is held of the first tokens stays for a time; further ones as soon as they are written.

        A page that is not full yet is kept once the sequence that writes it has filled it, or ended. Leasing the same
        tokens again makes the promise last longer. Changes nothing if some group's budget does not allow it, if nobody
        could resume, or beyond `MOST_LEASES`.
        """
        assert wish.num_tokens <= len(tokens)
        self.expire()
        key = token_key(tokens[: wish.num_tokens])
        matches = [group.match(namespace, key) for group in self._groups]
        now, old = self._clock(), self._by_prefix.get(namespace, {}).get(key)
        prefix = self._prefix(matches, key, wish.num_tokens)
        pairs = zip(self._groups, matches, strict=True)
        plans = tuple(group.plan_lease(namespace, match, prefix) for group, match in pairs)
        fits = prefix.state_tokens > 0 and self._fit(plans, old)
        if old is None and self._num_live_of(namespace) >= MOST_LEASES:
            fits = False
        if not fits and old is None:
            return LeaseResult(False, wish.num_tokens, prefix.state_tokens)
        num_new_tokens = wish.num_tokens - self._num_leased_tokens(namespace, key)
        new_nbytes = self._new_nbytes(plans, old) if fits else 0
        if fits:
            self._enter(namespace, prefix, plans, old)
        lease = self._by_prefix[namespace][key]
        lease.ttl_seconds = max(lease.ttl_seconds, wish.ttl_seconds)
        lease.expires_at = max(lease.expires_at, now + wish.ttl_seconds)
        if old is None:
            self._add_end(lease)
        resume_tokens = lease.prefix.state_tokens
        return LeaseResult(True, wish.num_tokens, resume_tokens, num_new_tokens, new_nbytes, lease.expires_at)

    def use(self, namespace: Namespace, key: bytes, num_tokens: int) -> None:
        """A sequence of the tokens in `key` resumes after `num_tokens`: leases that served it last longer."""
        for lease in self._by_prefix.get(namespace, {}).values():
            if num_tokens >= lease.prefix.page_tokens and key.startswith(lease.prefix.key):
                lease.num_hits += 1
                lease.expires_at = max(lease.expires_at, self._clock() + lease.ttl_seconds)

    def expire(self) -> None:
        """End the leases whose time has come."""
        while self._ends and self._ends[0][0] <= self._clock():
            _, ticket, lease = heappop(self._ends)
            if not lease.is_live:
                continue
            if lease.expires_at > self._clock():
                heappush(self._ends, (lease.expires_at, ticket, lease))
            else:
                self._on_lapse(lease)
                self._end(lease)

    def watch_lapses(self, lapsed: Callable[[Lease], None]) -> None:
        """Call `lapsed` with each lease whose time has come, before it ends."""
        self._on_lapse = lapsed

    def revoke(self, namespace: Namespace, tokens: Sequence[int] = ()) -> bool:
        """End the lease that expires first of those that can be in the way of a sequence of `tokens`.

        Those go last whose pages it uses itself. False, and nothing changed, if its tenant has none, or if others pin
        more than their shares: that passes.
        """
        if self._tenants.others_are_beyond_share(namespace):
            return False
        key = token_key(tokens)
        own = [lease for lease in self if self._tenants.share_account(lease.namespace, namespace)]
        if not own:
            return False
        self._end(min(own, key=lambda lease: (_is_within(lease, namespace, key), lease.expires_at)))
        self.num_revoked += 1
        return True

    def release(self, namespace: Namespace, tokens: Sequence[int]) -> bool:
        """End the lease of just these tokens; False if there is none."""
        lease = self._by_prefix.get(namespace, {}).get(token_key(tokens))
        if lease is None:
            return False
        self._end(lease)
        return True

    def end_all(self) -> None:
        for lease in list(self):
            self._end(lease)

    def end_broken(self) -> None:
        """End what some group cannot keep any more."""
        for lease in [each for each in self if any(hold.is_broken for hold in each.holds)]:
            self._end(lease)

    def infos(self) -> list[LeaseInfo]:
        """Every live lease."""
        self.expire()
        now = self._clock()
        return [
            LeaseInfo(
                tenant=lease.namespace.tenant,
                first_tokens=tuple(key_tokens(lease.prefix.key[: SHOWN_TOKENS * TOKEN_NBYTES])),
                num_tokens=lease.prefix.num_tokens,
                nbytes=self._nbytes([hold.num_pages for hold in lease.holds]),
                expires_in_seconds=lease.expires_at - now,
                age_seconds=now - lease.created_at,
                ttl_seconds=lease.ttl_seconds,
                num_hits=lease.num_hits,
            )
            for lease in self
        ]

    def _prefix(self, matches: Sequence[Any], key: bytes, num_tokens: int) -> Prefix:
        """Where a sequence with these tokens resumes: just before the last one if it has no more, else after it.

        The last page may not be sealed yet.
        """
        pairs = list(zip(self._groups, matches, strict=True))
        pages = [(group, match) for group, match in pairs if group.prefixes is not None]
        states = [(group, match) for group, match in pairs if group.snapshots is not None]
        held = min((match.num_tokens for _, match in pages), default=num_tokens)
        point = resumable(pages, min(num_tokens - 1, held))
        if not states:
            # Behind windows nothing is left of a prefix where nobody can resume.
            return Prefix(key, num_tokens, point, num_tokens if point or min(num_tokens - 1, held) == 0 else 0)
        state = resumable(states, num_tokens - 1)
        if state < max(num_tokens - 1, 1):
            state = resumable(states, num_tokens)
        if state > held or resumable(pages, state) == state:
            return Prefix(key, num_tokens, min(point, state), state)
        joint = resumable(pairs, state)
        return Prefix(key, num_tokens, joint, joint)

    def _num_live_of(self, namespace: Namespace) -> int:
        """How many leases share an account with `namespace`."""
        return self._num_by_account[self._groups[0].holdings.account_of(namespace)]

    def _count(self, lease: Lease, change: int) -> None:
        self.num_live += change
        self._num_by_account[self._groups[0].holdings.account_of(lease.namespace)] += change

    def _add_end(self, lease: Lease) -> None:
        """Leases that end before their time leave an entry; these are swept out when they are many."""
        heappush(self._ends, (lease.expires_at, next(self._tickets), lease))
        if len(self._ends) > 2 * self.num_live + SPARE_ENTRIES:
            self._ends = [each for each in self._ends if each[2].is_live]
            heapify(self._ends)

    def _fit(self, plans: Sequence[HoldPlan], old: Lease | None) -> bool:
        return all(group.holdings.leases.fits(plan, kept) for group, plan, kept in self._with_old(plans, old))

    def _enter(self, namespace: Namespace, prefix: Prefix, plans: Sequence[HoldPlan], old: Lease | None) -> None:
        """Keep what is planned, in place of what `old` kept."""
        holds = tuple(group.holdings.leases.keep(plan) for group, plan in zip(self._groups, plans, strict=True))
        if old is not None:
            self._let_go(old)
            old.prefix, old.holds = prefix, holds
            return
        now = self._clock()
        lease = Lease(namespace, prefix, holds, ttl_seconds=0.0, created_at=now, expires_at=now)
        self._by_prefix.setdefault(namespace, {})[prefix.key] = lease
        self._count(lease, 1)

    def _num_leased_tokens(self, namespace: Namespace, key: bytes) -> int:
        """How many of the first tokens in `key` are under some lease."""
        num_tokens, more = 0, key[:TOKEN_NBYTES]
        for lease in self._by_prefix.get(namespace, {}).values():
            if lease.prefix.key.startswith(more):  # else it has no more of them than one before
                num_tokens = common_tokens(lease.prefix.key, key)
                more = key[: (num_tokens + 1) * TOKEN_NBYTES]
                if num_tokens * TOKEN_NBYTES == len(key):
                    break
        return num_tokens

    def _new_nbytes(self, plans: Sequence[HoldPlan], old: Lease | None) -> int:
        """Of pages that no lease covers yet."""
        planned = self._with_old(plans, old)
        return self._nbytes([group.holdings.leases.cost(plan, kept) for group, plan, kept in planned])

    def _with_old(
        self, plans: Sequence[HoldPlan], old: Lease | None
    ) -> Iterator[tuple[CacheGroup, HoldPlan, LeaseHold | None]]:
        kept = (None,) * len(self._groups) if old is None else old.holds
        return zip(self._groups, plans, kept, strict=True)

    def _nbytes(self, num_pages: Sequence[int]) -> int:
        return sum(pages * nbytes for pages, nbytes in zip(num_pages, self._page_nbytes, strict=True))

    def _end(self, lease: Lease) -> None:
        lease.is_live = False
        self._count(lease, -1)
        leases = self._by_prefix[lease.namespace]
        del leases[lease.prefix.key]
        if not leases:
            del self._by_prefix[lease.namespace]
        self._let_go(lease)

    def _let_go(self, lease: Lease) -> None:
        for group, hold in zip(self._groups, lease.holds, strict=True):
            group.holdings.leases.end(hold)


def _is_within(lease: Lease, namespace: Namespace, key: bytes) -> bool:
    return lease.namespace == namespace and key.startswith(lease.prefix.key)
