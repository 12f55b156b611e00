"""The cache as the engine sees it: match, attach, reserve, commit, fork, release over all layer groups at once.

A prefix hit is the deepest point from which every group can resume. Moves bytes only through the `PageStore` of each
group, so it runs as well without any (`NoBytes`). Knows neither torch nor models.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import lcm
from time import monotonic
from typing import Any, NamedTuple, Protocol

from pagoda.cache.accounts import Account
from pagoda.cache.base import CacheGroup, resumable
from pagoda.cache.group import PageActions
from pagoda.cache.lease import Breakpoint, LeaseInfo, LeaseResult, Leases
from pagoda.cache.namespace import Namespace
from pagoda.cache.outline import Outline
from pagoda.cache.pages import Milestones, PageCounts
from pagoda.cache.radix import Watcher, token_key
from pagoda.errors import OutOfPagesError

logger = logging.getLogger(__name__)


class PageStore(Protocol):
    """The bytes behind the pages of one group."""

    def prepare(self, page: int) -> None:
        """A page that holds nothing yet is about to be written."""

    def copy(self, source: int, target: int) -> None:
        """Copy all bytes of a page."""


class NoBytes:
    """Pages that hold no bytes, for simulation."""

    def prepare(self, page: int) -> None: ...

    def copy(self, source: int, target: int) -> None: ...


class Hit(NamedTuple):
    """A match in every group, and the tokens all of them can resume from. Valid until the cache changes.

    `branch_tokens` are known to some group: another sequence went its own way there. `num_encoder_tokens` are held of
    the encoder's output. `key` is the tokens that were asked for.
    """

    namespace: Namespace
    key: bytes
    matches: tuple[Any, ...]
    num_tokens: int
    branch_tokens: int
    num_encoder_tokens: int


@dataclass(eq=False)
class CachedSequence:
    """The page tables of one sequence, one per group."""

    namespace: Namespace
    tables: tuple[Any, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens whose keys and values are in the pages, and which the states have seen."""
        return int(self.tables[0].num_tokens)


@dataclass(frozen=True)
class CacheStats:
    """A snapshot: `groups` has the page counts of each layer group. From `hit_tokens` on it counts since the start.

    Pages were evicted to make room, forgotten on request (`reset_pages`), or because their content was in doubt.
    `format_loss` is what the format of pages should cost in perplexity, as a share: None where that was not measured.
    """

    groups: tuple[PageCounts, ...]
    tokens_stored: int
    token_slots_allocated: int
    hit_tokens: int
    queried_tokens: int
    evicted_pages: int
    reset_pages: int = 0
    doubted_pages: int = 0
    revoked_leases: int = 0
    num_leases: int = 0  # now
    format_loss: float | None = None

    @property
    def utilization(self) -> float:
        """Tokens held by running sequences / token slots of the pages allocated to them (group that keeps most)."""
        return self.tokens_stored / self.token_slots_allocated if self.token_slots_allocated else 1.0

    @property
    def hit_rate(self) -> float:
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0


class Cache:
    """Pages of every layer group of a model, shared by prefix.

    Every method either succeeds or raises with nothing changed, but where it says otherwise. `page_nbytes` of each
    group are for telling how large leases are, whose time runs by `clock`.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        stores: Sequence[PageStore],
        page_nbytes: Sequence[int] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._groups = tuple(groups)
        self._stores = tuple(stores)
        # The group that knows most of a prefix: one that keeps all tokens, if there is one.
        self._main = next((index for index, group in enumerate(self._groups) if group.keeps_all), 0)
        self._sequences: set[CachedSequence] = set()
        self._hit_tokens = 0
        self._queried_tokens = 0
        self._reset_pages = 0
        self._leases = Leases(groups, page_nbytes or [0] * len(groups), clock)

    def match(self, namespace: Namespace, tokens: Sequence[int], limit: int) -> Hit:
        """How many of the first `limit` of `tokens` need not be computed. Changes nothing."""
        key = token_key(tokens)
        matches = tuple(group.match(namespace, key) for group in self._groups)
        pairs = tuple(zip(self._groups, matches, strict=True))
        matched = [group.matched_tokens(match) for group, match in pairs if group.holds_prefixes]
        num_encoder_tokens = sum(group.matched_tokens(match) for group, match in pairs if not group.holds_prefixes)
        num_tokens = resumable(pairs, min(limit, *matched))
        return Hit(namespace, key, matches, num_tokens, min(limit, max(matched)), num_encoder_tokens)

    def whole_pages(self, hit: Hit) -> Hit:
        """The part of `hit` that ends with a page in every group, so that nothing needs to be copied."""
        multiple = lcm(*(group.page_tokens for group in self._groups))
        pairs = tuple(zip(self._groups, hit.matches, strict=True))
        return hit._replace(num_tokens=resumable(pairs, hit.num_tokens, multiple))

    @property
    def resumes_anywhere(self) -> bool:
        """Whether any token can be resumed from whose pages are held; recurrent states must have been copied there."""
        return all(group.resumes_anywhere for group in self._groups)

    def can_attach(
        self, hit: Hit, num_new_tokens: int, step_tokens: int | None = None, running: Sequence[Namespace] = ()
    ) -> bool:
        """Whether `hit` and room for `num_new_tokens` more can be had, and sequences of `running` can still grow.

        Those are computed `step_tokens` at a time (None: all at once), so that windows can move on between.
        """
        self.expire()
        costs = self._attach_costs(hit, num_new_tokens, step_tokens)
        return all(
            cost + _spare_pages(group, hit.namespace, running) <= group.available_to(group.accounts.of(hit.namespace))
            for group, cost in zip(self._groups, costs, strict=True)
        )

    def can_attach_within_share(self, hit: Hit, num_new_tokens: int, step_tokens: int, num_running: int) -> bool:
        """`can_attach` from what is left of the tenant's own share, which nobody else can ever have.

        `num_running` counts its own sequences.
        """
        costs = self._attach_costs(hit, num_new_tokens, step_tokens)
        return all(
            cost + group.spare_pages(num_running) <= group.accounts.reserved_left(group.accounts.of(hit.namespace))
            for group, cost in zip(self._groups, costs, strict=True)
        )

    def attach(self, hit: Hit, num_prompt_tokens: int, breakpoints: tuple[int, ...] = ()) -> CachedSequence:
        """A new sequence that starts with the tokens of a fresh `hit`, which makes leases of them last longer.

        `num_prompt_tokens` is for the hit rate. Leases are wanted after `breakpoints` tokens.
        """
        if not self.can_attach(hit, num_new_tokens=0):
            raise OutOfPagesError("No page can be had to copy this hit to; wait for a sequence to end.")
        milestones = Milestones(hit.branch_tokens, num_prompt_tokens, breakpoints)
        actions = []
        with self._new_tables() as tables:
            for group, match in zip(self._groups, hit.matches, strict=True):
                table, action = group.attach(hit.namespace, match, hit.num_tokens, milestones)
                tables.append(table)
                actions.append(action)
            self._perform(actions)
        sequence = CachedSequence(hit.namespace, tuple(tables))
        self._sequences.add(sequence)
        self._hit_tokens += hit.num_tokens
        self._queried_tokens += num_prompt_tokens
        if self._leases.num_live:
            self._leases.use(hit.namespace, hit.key, hit.num_tokens)
        return sequence

    def can_reserve(self, sequence: CachedSequence, num_tokens: int) -> bool:
        self.expire()
        return not any(self._short_groups(sequence, num_tokens))

    def reserve(self, sequence: CachedSequence, num_tokens: int) -> bool:
        """Make room for `num_tokens` more tokens; False, and nothing changed, if some group has no page for them.

        If it raises, what is in the pages of the sequence is in doubt: release it without keeping them.
        """
        if not self.can_reserve(sequence, num_tokens):
            return False
        pairs = zip(self._groups, sequence.tables, strict=True)
        self._perform([group.reserve(table, num_tokens) for group, table in pairs])
        return True

    def commit(self, sequence: CachedSequence, tokens: Sequence[int], num_tokens: int) -> None:
        """The keys and values of the first `num_tokens` of `tokens` are written; full pages become shareable."""
        for group, table in zip(self._groups, sequence.tables, strict=True):
            group.commit(table, tokens, num_tokens)

    def fork(self, sequence: CachedSequence) -> CachedSequence:
        """A second sequence with the same tokens so far; pages are shared until one of them writes."""
        with self._new_tables() as tables:
            for group, table in zip(self._groups, sequence.tables, strict=True):
                tables.append(group.fork(table))
        twin = CachedSequence(sequence.namespace, tuple(tables))
        self._sequences.add(twin)
        return twin

    def release(self, sequence: CachedSequence, tokens: Sequence[int] = (), keep: bool = True) -> None:
        """End a sequence of `tokens`. Its pages stay hittable, unless their content is in doubt (`keep` False).

        Where a group fails to keep them, they go. If it raises nevertheless, it can be called again; once more than
        needed is fine.
        """
        for group, table in zip(self._groups, sequence.tables, strict=True):
            try:
                group.release(table, tokens, keep)
            except Exception:
                logger.exception("A layer group failed to keep the pages of a sequence; they are forgotten")
                keep = False
                group.release(table, tokens, keep)
        self._sequences.discard(sequence)
        if not keep and self._leases.num_live:
            self._leases.end_broken()

    def next_page(self, hit: Hit, tokens: Sequence[int]) -> object | None:
        """What stands for the first page that `hit` lacks of `tokens`: equal for two callers that would compute the
        same.

        None if the rest of `tokens` does not fill a page.
        """
        return self._groups[self._main].next_page(hit.namespace, hit.matches[self._main], tokens)

    def page_being_written(self, sequence: CachedSequence, tokens: Sequence[int]) -> object | None:
        """`next_page` as a running sequence sees it: the page that `tokens` will fill next."""
        return self._groups[self._main].page_being_written(sequence.namespace, sequence.tables[self._main], tokens)

    def reset(self) -> int:
        """End every lease and forget every page that no sequence uses; returns how many there were."""
        self._leases.end_all()
        num_pages = sum(group.reset() for group in self._groups)
        self._reset_pages += num_pages
        return num_pages

    def lease(self, namespace: Namespace, tokens: Sequence[int], wish: Breakpoint) -> LeaseResult:
        """Promise that what is held of the first tokens stays for a time; further ones as soon as they are written.

        A page that is not full yet is kept once the sequence that writes it has filled it, or ended. Leasing the same
        tokens again makes the promise last longer.
        """
        assert wish.num_tokens <= len(tokens)
        self.expire()
        key = token_key(tokens[: wish.num_tokens])
        matches = tuple(group.match(namespace, key) for group in self._groups)
        return self._leases.grant(namespace, matches, key, wish)

    def expire(self) -> None:
        """End the leases whose time has come."""
        if self._leases.num_live:
            self._leases.expire()

    def leases(self) -> list[LeaseInfo]:
        """Every live lease."""
        self.expire()
        return self._leases.infos()

    def revoke_lease(self, namespace: Namespace, tokens: Sequence[int] = ()) -> bool:
        """End the first to expire of the leases that can be in the way of a sequence of `tokens`.

        False, and nothing changed, if its tenant has none, or if others pin more than their shares: that passes.
        """
        if any(account.is_over for group in self._groups for account in self._others(group, namespace)):
            return False
        return self._leases.revoke_first(namespace, token_key(tokens))

    @property
    def has_shares(self) -> bool:
        """Whether it matters whose pages are whose."""
        return any(group.accounts.has_shares for group in self._groups)

    def share_account(self, namespace: Namespace, other: Namespace) -> bool:
        """Whether pages that one of them gives up can be had by the other, whatever anybody's share."""
        accounts = self._groups[self._main].accounts
        return accounts.of(namespace) is accounts.of(other)

    def is_beyond_share(self, namespace: Namespace) -> bool:
        """Whether its tenant has more pages of some group than it can be sure of."""
        return any(group.accounts.of(namespace).is_over for group in self._groups)

    def is_in_the_way(self, other: CachedSequence, sequence: CachedSequence, num_tokens: int) -> bool:
        """Whether `sequence` could have pages of `other`, in some group that is short of them."""
        if self.share_account(other.namespace, sequence.namespace):
            return True
        return any(group.accounts.of(other.namespace).is_over for group in self._short_groups(sequence, num_tokens))

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` which pages of the group that keeps most can be hit, on the thread that changes them."""
        self._groups[self._main].watch(watcher)

    def page_states(self, stride: int = 1) -> list[bytes]:
        """The `ShownState` of every page of each group, or of one in `stride`."""
        return [group.page_states(stride) for group in self._groups]

    def outline(self, most: int, most_tokens: int, tenant: str | None = None) -> list[Outline]:
        """Up to `most` branches of the prefix tree of a tenant, or of all (None), each with its first `most_tokens`."""
        return self._groups[self._main].outline(most, most_tokens, tenant)

    def stats(self) -> CacheStats:
        self.expire()
        size = self._groups[self._main].page_tokens
        tables = [sequence.tables[self._main] for sequence in self._sequences]
        shared = {
            page: min(size, table.num_tokens - index * size)
            for table in tables
            for index, page in enumerate(table.held, start=table.num_dropped)
        }
        return CacheStats(
            groups=tuple(group.counts for group in self._groups),
            tokens_stored=sum(max(tokens, 0) for tokens in shared.values()),
            token_slots_allocated=len(shared) * size,
            hit_tokens=self._hit_tokens,
            queried_tokens=self._queried_tokens,
            evicted_pages=sum(group.num_evictions for group in self._groups),
            reset_pages=self._reset_pages,
            doubted_pages=sum(group.num_doubted for group in self._groups),
            revoked_leases=self._leases.num_revoked,
            num_leases=self._leases.num_live,
        )

    def check_integrity(self) -> None:
        """Raise IntegrityError unless free + open + in use + idle = total and every count is what the tables say."""
        for index, group in enumerate(self._groups):
            group.check_integrity([sequence.tables[index] for sequence in self._sequences])

    @contextmanager
    def _new_tables(self) -> Iterator[list[Any]]:
        """The tables of a new sequence, as far as they are made: given up again if something raises."""
        tables: list[Any] = []
        try:
            yield tables
        except BaseException:
            for group, table in zip(self._groups, tables, strict=False):
                group.release(table, (), keep=True)
            raise

    def _attach_costs(self, hit: Hit, num_new_tokens: int, step_tokens: int | None) -> list[int]:
        """Pages that it takes in each group to attach to `hit` and go on."""
        step_tokens = num_new_tokens if step_tokens is None else step_tokens
        return [
            group.attach_cost(match, hit.num_tokens) + group.growth_cost(hit.num_tokens, num_new_tokens, step_tokens)
            for group, match in zip(self._groups, hit.matches, strict=True)
        ]

    def _short_groups(self, sequence: CachedSequence, num_tokens: int) -> Iterator[CacheGroup]:
        """Groups without the pages for `num_tokens` more."""
        for group, table in zip(self._groups, sequence.tables, strict=True):
            if group.reserve_cost(table, num_tokens) > group.available_to(table.account):
                yield group

    def _others(self, group: CacheGroup, namespace: Namespace) -> list[Account]:
        own = group.accounts.of(namespace)
        return [account for account in group.accounts.all if account is not own]

    def _perform(self, actions: Sequence[PageActions]) -> None:
        for store, action in zip(self._stores, actions, strict=True):
            for page in action.fresh:
                store.prepare(page)
            for source, target in action.copies:
                store.copy(source, target)


def _spare_pages(group: CacheGroup, namespace: Namespace, running: Sequence[Namespace]) -> int:
    """Pages that `namespace` leaves to the sequences of `running`: those of others grow into their own shares first."""
    own, counts = group.accounts.of(namespace), Counter(map(group.accounts.of, running))
    return sum(
        max(group.spare_pages(number) - (0 if account is own else group.accounts.reserved_left(account)), 0)
        for account, number in counts.items()
    )
