"""Leases and shares of tenants, on top of the cache machine: what is promised is held, for as long, and no longer.

The model knows each lease by its tokens, when it ends at the earliest and at the latest (a hit may or must make it
longer), and how far a prompt of these tokens must be held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from pagoda.cache.cache import Hit
from pagoda.cache.inspector import Inspector
from pagoda.cache.leases import Breakpoint
from pagoda.cache.prefix.held import NO_PAGE
from pagoda.cache.prefix.namespace import Namespace
from pagoda.config import TenantShare
from pagoda.layouts.spec import Reach
from stateful.test_cache_machine import NAMESPACES, CacheMachine, EveryThird, GroupShape, LastPageFirst, Live, window

TENANT = {"tenant": TenantShare(page_quota=0.4, lease_budget=0.3), "other": TenantShare(page_quota=0.2)}


@dataclass(eq=False)
class Promise:
    """A lease of `tokens`, of which `held` must be hit; made by `live` while all of it was at hand."""

    namespace: Namespace
    tokens: list[int]
    ttl: float
    ends_after: float
    ends_by: float
    held: int
    live: Live | None


class LeaseMachine(CacheMachine):
    """Random use of a cache with leases; time stands still but for `pass_time`."""

    shapes = (GroupShape(20, 4),)

    def __init__(self) -> None:
        super().__init__()
        self.promises: list[Promise] = []
        for group in self.groups:  # whoever evicts, nobody loses what is within its share
            group.holdings.accounts.next_idle = self.watched(group.holdings.accounts, group.holdings.accounts.next_idle)

    # What callers do

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), ttl=st.integers(1, 9))
    def lease_what_was_just_computed(self, which: int, ttl: int) -> None:
        live = self.pick(which)
        if live.stored:
            self.lease(live.namespace, live.tokens[: live.stored], ttl, live)

    @rule(
        namespace=st.sampled_from(NAMESPACES), which=st.integers(0, 1000), cut=st.integers(1, 30), ttl=st.integers(1, 9)
    )
    def lease_anything(self, namespace: Namespace, which: int, cut: int, ttl: int) -> None:
        tokens = self.seen[which % len(self.seen)][:cut]
        if tokens:
            self.lease(namespace, tokens, ttl, None)

    @rule(seconds=st.integers(1, 6))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule(namespace=st.sampled_from(NAMESPACES))
    def revoke(self, namespace: Namespace) -> None:
        before = {(each.tenant, each.num_tokens, each.expires_in_seconds) for each in Inspector(self.cache).leases()}
        accounts = self.groups[0].holdings.accounts
        own = {each for each in before if accounts.of(Namespace(tenant=each[0])) is accounts.of(namespace)}
        live = self.keys_of_live()
        revoked = self.cache.leases.revoke(namespace)
        assert not revoked or own
        if revoked:
            first = min(own, key=lambda each: each[2])
            ended = live - self.keys_of_live()
            gone = [each for each in self.promises if (each.namespace, tuple(each.tokens)) in ended]
            assert len(gone) == 1
            assert gone[0].ends_by - self.now >= first[2]
            self.promises = [each for each in self.promises if each is not gone[0]]

    # What holds after every step

    @invariant()
    def what_is_promised_is_held(self) -> None:
        for promise in self.current():
            tokens = promise.tokens
            found = self.cache.match(promise.namespace, tokens, len(tokens)).num_tokens
            assert found >= promise.held
            if found == len(tokens) and self.keeps_all:
                promise.held = found  # further pages are kept as soon as they are there

    @invariant()
    def leases_end_on_time(self) -> None:
        live = self.keys_of_live()
        for promise in self.promises:
            key = (promise.namespace, tuple(promise.tokens))
            assert self.now >= promise.ends_after or key in live
            assert self.now < promise.ends_by or key not in live
        known = {(each.namespace, tuple(each.tokens)) for each in self.promises}
        assert live <= known
        self.promises = [each for each in self.promises if (each.namespace, tuple(each.tokens)) in live]

    @invariant()
    def budgets_hold(self) -> None:
        for group in self.groups:
            for account in group.holdings.accounts.all:
                assert account.num_leased <= account.lease_limit
            unreserved = group.holdings.counts.total - sum(account.reserved for account in group.holdings.accounts.all)
            for account in group.holdings.accounts.all:
                others = [each for each in group.holdings.accounts.all if each is not account]
                over = sum(max(each.num_pinned - each.reserved, 0) for each in others)
                if group.holdings.accounts.has_shares:
                    own = account.reserved - account.num_pinned
                    assert group.holdings.available_to(account) == unreserved - over + own
                    assert group.holdings.available_to(account) >= max(own, 0)
                else:
                    counts = group.holdings.counts
                    assert group.holdings.available_to(account) == counts.free + counts.idle - counts.leased

    # The model

    @property
    def keeps_all(self) -> bool:
        return all(group.prefixes.keeps_all for group in self.groups)

    def current(self) -> list[Promise]:
        """Those that have not ended, whatever the cache says."""
        live = self.keys_of_live()
        return [
            each for each in self.promises if (each.namespace, tuple(each.tokens)) in live or self.now < each.ends_after
        ]

    def keys_of_live(self) -> set[tuple[Namespace, tuple[int, ...]]]:
        self.cache.leases.expire()
        return {(each.namespace, tuple(memoryview(each.prefix.key).cast("i"))) for each in self.cache.leases}

    def lease(self, namespace: Namespace, tokens: list[int], ttl: int, live: Live | None) -> None:
        hit = self.cache.match(namespace, tokens, len(tokens))
        held = len(tokens) if hit.num_tokens == len(tokens) else self.cache.whole_pages(hit).num_tokens
        before = (self.snapshot(), Inspector(self.cache).leases())
        result = self.cache.leases.grant(namespace, tokens, Breakpoint(len(tokens), ttl))
        if not result.granted:
            assert (self.snapshot(), Inspector(self.cache).leases()) == before
            return
        assert result.expires_at is not None and result.expires_at >= self.now + ttl
        old = next((each for each in self.promises if (each.namespace, each.tokens) == (namespace, tokens)), None)
        assert old is None or result.num_new_tokens == 0
        promise = old or Promise(namespace, tokens, 0, 0, 0, 0, None)
        promise.ttl = max(promise.ttl, ttl)
        promise.ends_after = max(promise.ends_after, self.now + ttl)
        promise.ends_by = max(promise.ends_by, result.expires_at)
        promise.held = max(promise.held, held if old is None else 0)
        promise.live = live if old is None else promise.live
        if old is None:
            self.promises.append(promise)

    def end(self, live: Live, keep: bool) -> None:
        is_alone = all(
            group.holdings.allocator.references(table.pages[live.stored // group.page_tokens]) == 1
            for group, table in zip(self.groups, live.cached.tables, strict=True)
            if live.stored % group.page_tokens
        )
        super().end(live, keep)
        if not keep:
            left = self.keys_of_live()
            self.promises = [each for each in self.promises if (each.namespace, tuple(each.tokens)) in left]
        # A short page is not kept beside a node of its tokens whose own page has gone from behind a window.
        has_gaps = any(node.page == NO_PAGE for group in self.groups for node in group.prefixes.tree.nodes())
        for promise in self.current() if not has_gaps else ():
            if promise.live is live and keep and (is_alone or live.stored // 12 > len(promise.tokens) // 12):
                # The last page had been open; now it is there to be kept.
                tokens = promise.tokens
                assert self.cache.match(promise.namespace, tokens, len(tokens)).num_tokens == self.resumable(
                    len(tokens), len(tokens)
                )
                promise.held = self.resumable(len(tokens), len(tokens))

    def attached(self, hit: Hit) -> None:
        """A hit makes leases of what it hit last longer."""
        tokens = list(memoryview(hit.key).cast("i"))
        for promise in self.promises:
            if promise.namespace == hit.namespace and tokens[: len(promise.tokens)] == promise.tokens:
                promise.ends_by = max(promise.ends_by, self.now + promise.ttl)
                if hit.num_tokens >= len(promise.tokens) - 1 and self.now < promise.ends_after:
                    promise.ends_after = max(promise.ends_after, self.now + promise.ttl)

    @initialize()
    def watch_hits(self) -> None:
        attach = self.cache.attach

        def attach_and_tell(hit: Hit, num_prompt_tokens: int):
            attached = attach(hit, num_prompt_tokens)
            self.attached(hit)
            return attached

        self.cache.attach = attach_and_tell  # type: ignore[method-assign, assignment]

        reset = self.cache.reset

        def reset_and_tell() -> int:
            self.promises.clear()
            return reset()

        self.cache.reset = reset_and_tell  # type: ignore[method-assign]

    @staticmethod
    def watched(accounts, next_idle):
        def next_idle_of_those_over(asker):
            held = {account: account.num_held for account in accounts.all}
            node = next_idle(asker)
            if node is not None and asker is not None:
                assert not node.num_leases
                owner = accounts.owner(node.page)
                assert owner is asker or held[owner] > owner.reserved
                assert owner is not asker or held[owner] >= owner.reserved
            return node

        return next_idle_of_those_over


class RoomyLeases(LeaseMachine):
    shapes = (GroupShape(400, 4),)


class TwoGroupsOfLeases(LeaseMachine):
    shapes = (GroupShape(24, 4), GroupShape(15, 6, EveryThird(), LastPageFirst()))


class LeasedWindows(LeaseMachine):
    shapes = (
        GroupShape(12, 4, window(Reach.SLIDING, 6)),
        GroupShape(24, 4),
        GroupShape(12, 2, window(Reach.CHUNKED, 4)),
    )


class LeasesOfTenants(LeaseMachine):
    tenants: ClassVar = TENANT


class LeasedWindowsOfTenants(LeasedWindows):
    tenants: ClassVar = TENANT


@pytest.mark.parametrize(
    "machine",
    [LeaseMachine, RoomyLeases, TwoGroupsOfLeases, LeasedWindows, LeasesOfTenants, LeasedWindowsOfTenants],
)
def test_leases_are_kept(machine: type[LeaseMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=40))
