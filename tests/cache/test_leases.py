"""Leases over a cache whose pages hold nothing: tails, budgets, doubt, and where states are to be copied."""

import pytest

from pagoda.cache import leases as module
from pagoda.cache.cache import Cache, NoBytes
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.cross import CrossGroup
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.groups.state import SnapshotRule, StateGroup
from pagoda.cache.inspector import Inspector
from pagoda.cache.leases import SPARE_ENTRIES, Breakpoint
from pagoda.cache.prefix.namespace import Namespace
from pagoda.config import TenantShare
from pagoda.errors import IntegrityError
from pagoda.layouts.spec import Reach
from stateful.test_cache_machine import window

PAGE_NBYTES = 100
NAMESPACE = Namespace()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cache(clock):
    """16 pages of 4 tokens, of which 8 may be leased."""
    return Cache([PageGroup(16, 4, LRU(), KeepAll())], [NoBytes()], [PAGE_NBYTES], clock)


def run(cache, tokens, namespace=NAMESPACE, breakpoints=(), step_tokens=1000):
    """A sequence of which all tokens are computed."""
    tokens = list(tokens)
    sequence = cache.attach(cache.match(namespace, tokens, len(tokens)), len(tokens), breakpoints)
    while sequence.num_tokens < len(tokens):
        num_tokens = min(len(tokens) - sequence.num_tokens, step_tokens)
        assert cache.reserve(sequence, num_tokens)
        cache.commit(sequence, tokens, sequence.num_tokens + num_tokens)
    return sequence


def store(cache, tokens, namespace=NAMESPACE):
    cache.release(run(cache, tokens, namespace), list(tokens))


def flood(cache, namespace=NAMESPACE):
    """Use every page that can be had."""
    for start in range(100, 200, 10):
        store(cache, range(start, start + 8), namespace)


def lease(cache, tokens, ttl=10, namespace=NAMESPACE):
    return cache.leases.grant(namespace, list(tokens), Breakpoint(len(tokens), ttl))


def held(cache, tokens, namespace=NAMESPACE):
    Inspector(cache).check_integrity()
    return cache.match(namespace, list(tokens), len(tokens)).num_tokens


def test_leased_pages_stay_and_others_go(cache, clock):
    store(cache, range(10))
    lease(cache, range(8))
    flood(cache)
    assert held(cache, range(10)) == 8
    clock.now = 10
    flood(cache)
    assert held(cache, range(10)) == 0


def test_a_tail_is_kept_once_its_sequence_has_ended(cache):
    sequence = run(cache, range(10))
    result = lease(cache, range(10))
    assert (result.granted, result.new_nbytes) == (True, 3 * PAGE_NBYTES)
    cache.release(sequence, list(range(10)))
    flood(cache)
    assert held(cache, range(10)) == 10


def test_a_tail_is_kept_by_the_page_that_its_own_sequence_fills(cache):
    sequence = run(cache, range(6))
    lease(cache, range(6))
    cache.reserve(sequence, 6)
    cache.commit(sequence, list(range(12)), 12)
    cache.release(sequence, list(range(12)))
    flood(cache)
    assert held(cache, range(12)) == 8


def test_a_lease_moves_on_to_the_page_that_takes_the_place_of_a_short_one(cache):
    store(cache, range(6))
    lease(cache, range(6))
    assert Inspector(cache).stats().groups[0].leased == 2
    store(cache, range(8))
    assert Inspector(cache).stats().groups[0].idle == 2
    assert Inspector(cache).stats().groups[0].leased == 2
    flood(cache)
    assert held(cache, range(8)) == 8


def test_two_tails_in_one_page_are_one_page(cache):
    store(cache, range(7))
    assert lease(cache, range(5)).new_nbytes == 2 * PAGE_NBYTES
    assert lease(cache, range(6)).new_nbytes == 0
    assert lease(cache, range(6)).num_new_tokens == 0
    store(cache, range(8))
    assert Inspector(cache).stats().groups[0].leased == 2
    assert held(cache, range(8)) == 8


def test_what_is_not_there_yet_is_kept_as_it_comes(cache):
    assert lease(cache, range(11)).granted
    store(cache, range(6))
    store(cache, range(12))
    flood(cache)
    assert held(cache, range(12)) == 12


def test_the_budget_counts_pages_once_and_those_to_come(cache):
    store(cache, range(20))
    assert lease(cache, range(20)).granted
    assert lease(cache, range(16)).granted
    refused = lease(cache, range(100, 116))
    assert (refused.granted, refused.new_nbytes, refused.expires_at) == (False, 0, None)
    assert lease(cache, range(100, 112)).granted
    assert len(Inspector(cache).leases()) == 3


def test_a_refresh_never_shortens(cache, clock):
    store(cache, range(8))
    assert lease(cache, range(8), ttl=100).expires_at == 100
    clock.now = 5
    assert lease(cache, range(8), ttl=10).expires_at == 100
    assert lease(cache, range(8), ttl=200).expires_at == 205


def test_a_hit_refreshes_leases_it_reaches(cache, clock):
    store(cache, range(12))
    lease(cache, range(4), ttl=10)
    lease(cache, range(12), ttl=10)
    clock.now = 5
    store(cache, [*range(8), 50])
    assert {info.num_tokens: (info.expires_in_seconds, info.num_hits) for info in Inspector(cache).leases()} == {
        4: (10, 1),
        12: (5, 0),
    }
    clock.now = 10
    assert [info.num_tokens for info in Inspector(cache).leases()] == [4]


def test_leased_pages_are_not_available(cache):
    store(cache, range(32))
    lease(cache, range(32))
    assert Inspector(cache).stats().groups[0].available == 8
    assert not cache.can_attach(cache.match(NAMESPACE, list(range(100, 136)), 0), 36)
    # Going on from what is leased takes no available page for it.
    assert cache.can_attach(cache.match(NAMESPACE, list(range(32)), 32), 32)


def test_pages_in_doubt_break_leases_over_them_and_no_others(cache):
    store(cache, range(8))
    lease(cache, range(4))
    lease(cache, range(8))
    store(cache, range(50, 58))
    lease(cache, range(50, 58))
    reader = run(cache, range(4))
    doubted = run(cache, range(12))
    cache.release(doubted, list(range(12)), keep=False)
    Inspector(cache).check_integrity()
    assert sorted(info.num_tokens for info in Inspector(cache).leases()) == [4, 8]
    assert held(cache, range(8)) == 4
    cache.release(reader, list(range(4)))
    assert Inspector(cache).stats().doubted_pages == 2


def test_reset_ends_leases(cache):
    store(cache, range(8))
    lease(cache, range(12))
    assert cache.reset() == 2
    assert (Inspector(cache).leases(), Inspector(cache).stats().reset_pages) == ([], 2)
    store(cache, range(12))
    assert Inspector(cache).stats().groups[0].leased == 0


def test_what_ended_before_its_time_is_forgotten(cache):
    store(cache, range(8))
    for _ in range(3 * SPARE_ENTRIES):
        lease(cache, range(8))
        cache.reset()
        store(cache, range(8))
    assert len(cache.leases._ends) <= SPARE_ENTRIES + 2


def test_a_tenant_has_a_limited_number_of_leases(cache, monkeypatch):
    monkeypatch.setattr(module, "MOST_LEASES", 2)
    store(cache, range(16))
    assert [lease(cache, range(n)).granted for n in (4, 8, 12, 8)] == [True, True, False, True]


def test_leases_are_told(cache, clock, monkeypatch):
    store(cache, range(6))
    lease(cache, range(6), ttl=10)
    clock.now = 3
    info = Inspector(cache).leases()[0]
    assert (info.tenant, info.num_tokens, info.nbytes, info.ttl_seconds) == ("", 6, 2 * PAGE_NBYTES, 10)
    assert (info.expires_in_seconds, info.age_seconds) == (7, 3)
    assert info.first_tokens == tuple(range(6))
    monkeypatch.setattr(module, "SHOWN_TOKENS", 4)
    assert Inspector(cache).leases()[0].first_tokens == tuple(range(4))


def test_broken_counts_of_leases_are_noticed(cache):
    store(cache, range(8))
    lease(cache, range(8))
    node = next(iter(cache.groups[0].prefixes.tree.nodes()))
    node.num_leases += 1
    with pytest.raises(IntegrityError, match="leases"):
        Inspector(cache).check_integrity()


class TestTenants:
    @pytest.fixture
    def cache(self, clock):
        tenants = {"a": TenantShare(0.5), "b": TenantShare(0.25, 0.25)}
        return Cache([PageGroup(16, 4, LRU(), KeepAll(), tenants=tenants)], [NoBytes()], [PAGE_NBYTES], clock)

    def test_only_a_lease_budget_grants_leases(self, cache):
        for name, granted in (("", False), ("a", False), ("b", True)):
            assert lease(cache, range(4), namespace=Namespace(tenant=name)).granted is granted

    def test_nobody_can_have_what_others_have_reserved(self, cache):
        for name, num_pages in (("", 4), ("a", 12), ("b", 8), ("else", 4)):
            hit = cache.match(Namespace(tenant=name), list(range(100)), 0)
            assert cache.can_attach(hit, 4 * num_pages)
            assert not cache.can_attach(hit, 4 * num_pages + 1)

    def test_a_tenant_within_its_share_loses_nothing(self, cache):
        store(cache, range(32), Namespace(tenant="a"))
        flood(cache, Namespace(tenant="b"))
        flood(cache)
        assert held(cache, range(32), Namespace(tenant="a")) == 32

    def test_what_it_holds_beyond_goes(self, cache):
        store(cache, range(48), Namespace(tenant="a"))
        flood(cache)
        assert held(cache, range(48), Namespace(tenant="a")) == 32

    def test_idle_pages_of_others_fill_an_unused_share_until_it_is_wanted(self, cache):
        flood(cache)
        assert Inspector(cache).stats().groups[0].free == 0
        store(cache, range(32), Namespace(tenant="a"))
        assert held(cache, range(32), Namespace(tenant="a")) == 32

    def test_a_tenant_revokes_only_its_own_leases(self, cache):
        lease(cache, range(4), namespace=Namespace(tenant="b"))
        assert not cache.leases.revoke(Namespace(tenant="a"))
        assert cache.leases.revoke(Namespace(tenant="b"))
        assert not cache.leases.revoke(Namespace(tenant="b"))
        assert Inspector(cache).stats().revoked_leases == 1

    def test_not_while_others_pin_more_than_their_share(self, cache):
        lease(cache, range(4), namespace=Namespace(tenant="b"))
        sequence = run(cache, range(4))
        assert not cache.leases.revoke(Namespace(tenant="b"))
        cache.release(sequence, list(range(4)))
        assert cache.leases.revoke(Namespace(tenant="b"))

    def test_leased_pages_leave_others_what_they_may_have(self, clock):
        tenants = {"a": TenantShare(lease_budget=1 / 3), "b": TenantShare(page_quota=1 / 3)}
        cache = Cache([PageGroup(24, 4, LRU(), KeepAll(), tenants=tenants)], [NoBytes()], [PAGE_NBYTES], clock)
        own = Namespace(tenant="a")
        store(cache, range(16), own)
        run(cache, range(100, 132), own)
        run(cache, range(200, 232))  # the sixteen pages that are nobody's are in use, or idle and to be had
        assert not lease(cache, range(16), namespace=own).granted
        Inspector(cache).check_integrity()


class TestWindows:
    def test_no_lease_is_granted_of_what_nobody_can_resume(self, clock):
        """A window has moved on from the prefix, and its pages there have been evicted since."""
        rules = (KeepAll(), window(Reach.SLIDING, 6))
        groups = [PageGroup(num_pages, 4, LRU(), rule) for num_pages, rule in zip((64, 12), rules, strict=True)]
        cache = Cache(groups, [NoBytes()] * 2, [PAGE_NBYTES] * 2, clock)
        for tokens in (range(80), range(1000, 1016), range(1100, 1116)):
            cache.release(run(cache, tokens, step_tokens=4), list(tokens))
        assert held(cache, range(40)) == 0
        sequence = run(cache, [*range(80), 5])
        result = lease(cache, range(40))
        assert (result.granted, result.resume_tokens, Inspector(cache).leases()) == (False, 0, [])
        cache.release(sequence, [*range(80), 5])
        assert lease(cache, range(80)).granted


class TestStates:
    @pytest.fixture
    def cache(self, clock):
        groups = [PageGroup(40, 4, LRU(), KeepAll()), StateGroup(6, LRU(), SnapshotRule(None, 4))]
        return Cache(groups, [NoBytes()] * 2, [PAGE_NBYTES, 7], clock)

    @pytest.mark.parametrize("cut", [1, 4, 6, 11])
    def test_the_state_at_a_breakpoint_is_copied_and_kept(self, cache, cut):
        sequence = run(cache, range(12), breakpoints=(cut,))
        result = lease(cache, range(cut))
        assert (result.granted, result.resume_tokens) == (True, cut)
        cache.release(sequence, list(range(12)))
        flood(cache)
        assert held(cache, range(cut)) == cut

    def test_at_the_end_of_a_prompt_it_is_that_before_the_last_token(self, cache):
        """The same prompt asked again must compute that token, whatever is held."""
        run(cache, range(12), breakpoints=(12,))
        assert lease(cache, range(12)).resume_tokens == 11

    def test_without_a_state_to_resume_from_nothing_is_leased(self, cache):
        run(cache, range(12))
        assert lease(cache, range(6)) == lease(cache, range(6))
        assert not lease(cache, range(6)).granted
        assert Inspector(cache).leases() == []

    def test_going_on_from_a_leased_state_takes_only_a_slot_for_its_copy(self, clock):
        groups = [PageGroup(40, 4, LRU(), KeepAll()), StateGroup(2, LRU(), SnapshotRule(None, 4))]
        cache = Cache(groups, [NoBytes()] * 2, clock=clock)
        store(cache, range(12))
        hit = cache.match(NAMESPACE, list(range(12)), 11)
        assert hit.num_tokens == lease(cache, range(12)).resume_tokens == 11
        running = cache.attach(hit, 12)
        Inspector(cache).check_integrity()
        # The state is leased and the other slot in use: nobody else can start.
        assert not cache.can_attach(hit, 0)
        cache.release(running, list(range(12)))
        clock.now = 10
        busy = cache.attach(cache.match(NAMESPACE, [50], 0), 1)
        # A state that may be evicted cannot be copied to the slot that its own eviction would free.
        hit = cache.match(NAMESPACE, list(range(16)), 15)
        assert hit.num_tokens > 0
        assert not cache.can_attach(hit, 0)
        cache.release(busy, [50])


def test_the_output_of_an_encoder_is_kept_with_the_tokens_that_depend_on_it(clock):
    outputs = CrossGroup(6, 4, LRU())
    cache = Cache([PageGroup(40, 4, LRU(), KeepAll()), outputs], [NoBytes()] * 2, [PAGE_NBYTES, 7], clock)
    leased, *others = [Namespace("", bytes([name]), 8) for name in range(4)]
    store(cache, range(8), leased)
    assert lease(cache, range(8), namespace=leased).new_nbytes == 2 * PAGE_NBYTES + 2 * 7
    for each in others:
        store(cache, range(8), each)
    Inspector(cache).check_integrity()
    assert [outputs.match(each, b"").entry is not None for each in (leased, *others)] == [True, False, True, True]
    clock.now = 10
    store(cache, range(8), others[0])
    assert outputs.match(leased, b"").entry is None


def test_the_lease_of_just_these_tokens_can_end_early(cache):
    store(cache, range(8))
    lease(cache, range(8))
    lease(cache, range(4))
    assert not cache.leases.release(NAMESPACE, list(range(6)))
    assert cache.leases.release(NAMESPACE, list(range(8)))
    assert [info.num_tokens for info in Inspector(cache).leases()] == [4]
    assert not cache.leases.release(NAMESPACE, list(range(8)))
    flood(cache)
    Inspector(cache).check_integrity()
    assert held(cache, range(8)) == 4
