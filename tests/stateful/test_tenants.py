"""A tenant within its share never notices the others.

The same operations of one tenant run in a cache of its own and in one that another tenant floods: as long as it holds
no more than its share, every answer is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.cache.cache import Cache, CachedSequence, NoBytes
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.groups.state import SnapshotRule, StateGroup
from pagoda.cache.inspector import Inspector
from pagoda.cache.leases import Breakpoint
from pagoda.cache.prefix.namespace import Namespace
from pagoda.config import TenantShare
from pagoda.errors import OutOfPagesError
from pagoda.layouts.spec import Reach
from stateful.test_cache_machine import window

QUIET = Namespace(tenant="quiet")
LOUD = (Namespace(), Namespace(tenant="loud"))
SHARES = {"quiet": TenantShare(page_quota=0.5, lease_budget=0.2), "loud": TenantShare(lease_budget=0.25)}

Operation = tuple[str, int, list[int]]

operations = st.tuples(
    st.sampled_from(["start", "grow", "end", "lease"]), st.integers(0, 1000), st.lists(st.integers(0, 1), max_size=12)
)


@dataclass
class Client:
    """One tenant's use of a cache, and the answers it got."""

    cache: Cache
    namespace: Namespace
    live: list[tuple[CachedSequence, list[int]]] = field(default_factory=list)
    seen: list[list[int]] = field(default_factory=lambda: [[]])
    has_been_over: bool = False

    def do(self, operation: Operation) -> object:
        kind, number, tokens = operation
        if kind == "start":
            return self.start([*self.seen[number % len(self.seen)][: number % 17], *tokens])
        if not self.live:
            return None
        which = number % len(self.live)
        cached, known = self.live[which]
        if kind == "lease" and cached.num_tokens:
            num_tokens = number % cached.num_tokens + 1
            result = self.cache.leases.grant(self.namespace, known, Breakpoint(num_tokens, 1e9))
            return result.granted, result.num_new_tokens
        if kind == "grow":
            return self.grow(which, [*known, *tokens])
        if kind == "end":
            del self.live[which]
            self.cache.release(cached, known[: cached.num_tokens])
        return None

    def start(self, tokens: list[int]) -> object:
        hit = self.cache.match(self.namespace, tokens, len(tokens))
        self.seen.append(tokens)
        try:
            cached = self.cache.attach(hit, len(tokens))
        except OutOfPagesError:
            return hit.num_tokens, "no room"
        self.live.append((cached, tokens[: hit.num_tokens]))
        self.look()
        return hit.num_tokens, self.grow(len(self.live) - 1, tokens)

    def grow(self, which: int, tokens: list[int]) -> bool:
        cached, _ = self.live[which]
        if not self.cache.reserve(cached, len(tokens) - cached.num_tokens):
            return False
        self.look()
        self.cache.commit(cached, tokens, len(tokens))
        self.look()
        self.live[which] = (cached, tokens)
        return True

    def look(self) -> None:
        accounts = [group.holdings.accounts.of(self.namespace) for group in self.cache.groups]
        self.has_been_over |= any(account.num_held > account.reserved for account in accounts)


def pages() -> Cache:
    return Cache([PageGroup(24, 4, LRU(), KeepAll(), tenants=SHARES)], [NoBytes()])


def windows() -> Cache:
    rules = (KeepAll(), window(Reach.SLIDING, 6))
    return Cache([PageGroup(32, 4, LRU(), rule, tenants=SHARES) for rule in rules], [NoBytes()] * 2)


def states() -> Cache:
    group = PageGroup(40, 4, LRU(), KeepAll(), tenants=SHARES)
    return Cache([group, StateGroup(24, LRU(), SnapshotRule(5, 4), tenants=SHARES)], [NoBytes()] * 2)


@pytest.mark.parametrize("make", [pages, windows, states])
@settings(max_examples=100)
@given(
    steps=st.lists(
        st.tuples(operations, st.lists(st.tuples(st.sampled_from(LOUD), operations), max_size=6)), max_size=20
    )
)
def test_a_tenant_within_its_share_is_as_if_alone(make, steps: list) -> None:
    alone, beside = Client(make(), QUIET), Client(make(), QUIET)
    loud = {namespace: Client(beside.cache, namespace) for namespace in LOUD}
    for operation, noise in steps:
        for namespace, each in noise:
            loud[namespace].do(each)
            Inspector(beside.cache).check_integrity()
        expected = alone.do(operation)
        if alone.has_been_over:
            return
        assert beside.do(operation) == expected
        Inspector(beside.cache).check_integrity()


def test_the_others_do_fill_the_cache() -> None:
    """Without a share the same noise does matter: the test above can fail."""
    shares = {"loud": SHARES["loud"]}
    cache = Cache([PageGroup(24, 4, LRU(), KeepAll(), tenants=shares)], [NoBytes()])
    quiet, loud = Client(cache, QUIET), Client(cache, LOUD[1])
    quiet.do(("start", 0, [0] * 12))
    quiet.do(("end", 0, []))
    loud.do(("start", 0, [1] * 96))
    assert quiet.do(("start", 0, [0] * 12)) == (0, False)
