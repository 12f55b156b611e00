"""A cache of a model with recurrent layers against one that keeps every sequence as a plain list of tokens.

A slot holds the tokens that its state has seen, so a wrong state is a wrong list.
"""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from pagoda.cache.cache import Cache, CachedSequence, NoBytes
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.groups.state import SnapshotRule, StateGroup
from pagoda.cache.inspector import Inspector
from pagoda.cache.leases import Breakpoint
from pagoda.cache.prefix.keys import token_key
from pagoda.registry import lookup, names

POISON = (-1,)
PAGE_TOKENS = 4

token_runs = st.lists(st.integers(0, 1), max_size=14)


class StateStore:
    """Slots of the tokens a state has seen."""

    def __init__(self, num_slots: int) -> None:
        self.slots: list[tuple[int, ...]] = [POISON] * num_slots

    def prepare(self, page: int) -> None:
        self.slots[page] = POISON

    def copy(self, source: int, target: int) -> None:
        self.slots[target] = self.slots[source]


@dataclass(eq=False)
class Live:
    """A sequence under way: of `tokens`, the states have seen the first `stored`; once detached it `is_private`."""

    cached: CachedSequence
    namespace: str
    tokens: list[int]
    stored: int
    is_private: bool = False


class StateMachine(RuleBasedStateMachine):
    """Random use of one cache; subclasses choose its size."""

    num_pages = 800
    num_slots = 400
    interval: int | None = 5
    share = True
    policy = "lru"

    def __init__(self) -> None:
        super().__init__()
        policy = lookup("eviction", self.policy)()
        self.states = StateGroup(self.num_slots, policy, SnapshotRule(self.interval, PAGE_TOKENS), self.share)
        self.store = StateStore(self.num_slots)
        self.pages = PageGroup(self.num_pages, PAGE_TOKENS, policy, KeepAll(), self.share)
        self.now = 0.0
        self.cache = Cache([self.pages, self.states], [NoBytes(), self.store], clock=lambda: self.now)
        self.live: list[Live] = []
        self.seen: list[list[int]] = [[]]
        # States that must be found while nothing is evicted or forgotten.
        self.kept: set[tuple[str, tuple[int, ...]]] = set()
        self.is_exact = self.share

    @rule(
        namespace=st.sampled_from(("", "salt")),
        ancestor=st.integers(0, 1000),
        cut=st.integers(0, 30),
        more=token_runs,
        limit_by=st.integers(0, 2),
    )
    def start(self, namespace: str, ancestor: int, cut: int, more: list[int], limit_by: int) -> None:
        """A prompt that shares some tokens with an earlier one."""
        tokens = [*self.seen[ancestor % len(self.seen)][:cut], *more]
        limit = max(len(tokens) - limit_by, 0)
        hit = self.cache.match(namespace, tokens, limit)
        self.check_hit(namespace, tokens, limit, hit.num_tokens)
        if not self.cache.can_attach(hit, len(tokens) - hit.num_tokens):
            return
        live = Live(self.cache.attach(hit, len(tokens)), namespace, tokens, hit.num_tokens)
        self.live.append(live)
        self.advance(live, len(tokens) - live.stored)
        self.seen.append(tokens)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), more=token_runs, chunk=st.integers(1, 9))
    def grow(self, which: int, more: list[int], chunk: int) -> None:
        live = self.pick(which)
        live.tokens = [*live.tokens, *more]
        while live.stored < len(live.tokens) and self.advance(live, min(chunk, len(live.tokens) - live.stored)):
            pass
        self.seen.append(live.tokens)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000))
    def fork(self, which: int) -> None:
        live = self.pick(which)
        twin = self.cache.fork(live.cached)
        self.live.append(Live(twin, live.namespace, live.tokens, live.stored, live.is_private))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000))
    def detach(self, which: int) -> None:
        live = self.pick(which)
        live.is_private = True
        self.cache.compact(live.cached, live.tokens, {})

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), keep=st.sampled_from((True, True, True, False)))
    def release(self, which: int, keep: bool) -> None:
        self.end(self.pick(which), keep)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), num_tokens=st.integers(1, 9))
    def fail_while_computing(self, which: int, num_tokens: int) -> None:
        """A step that was reserved is never committed, and has overwritten the state."""
        live = self.pick(which)
        if self.cache.reserve(live.cached, num_tokens):
            self.store.slots[live.cached.tables[-1].pages[0]] = POISON
            self.end(live, keep=False)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), num_tokens=st.integers(1, 9))
    def preempt_before_computing(self, which: int, num_tokens: int) -> None:
        live = self.pick(which)
        self.cache.reserve(live.cached, num_tokens)
        self.end(live, keep=True)

    @rule()
    def reset(self) -> None:
        self.cache.reset()
        assert self.states.holdings.counts.idle == 0
        self.kept.clear()

    @invariant()
    def bookkeeping_agrees(self) -> None:
        Inspector(self.cache).check_integrity()

    @invariant()
    def every_state_has_seen_its_tokens(self) -> None:
        for live in self.live:
            table = live.cached.tables[-1]
            assert table.num_tokens == live.stored
            if live.stored:
                assert self.store.slots[table.pages[0]] == tuple(live.tokens[: live.stored])

    @invariant()
    def every_snapshot_has_seen_the_tokens_it_is_found_by(self) -> None:
        for snapshot in self.states.snapshots:
            assert token_key(self.store.slots[snapshot.page]) == snapshot.key

    def teardown(self) -> None:
        for live in list(self.live):
            self.end(live, keep=True)
        Inspector(self.cache).check_integrity()
        self.cache.reset()
        assert self.states.holdings.counts.free == self.states.holdings.counts.total

    def pick(self, which: int) -> Live:
        return self.live[which % len(self.live)]

    def advance(self, live: Live, num_tokens: int) -> bool:
        """Compute `num_tokens` more, copying the state where it is asked for."""
        promised = self.cache.can_reserve(live.cached, num_tokens)
        assert self.cache.reserve(live.cached, num_tokens) == promised
        if not promised:
            return False
        table, end = live.cached.tables[-1], live.stored + num_tokens
        assert table.cuts == sorted(table.cuts)
        assert not (table.cuts and live.is_private), "nobody else may go on from its states"
        for point, slot in table.cuts:
            assert live.stored < point <= end
            self.store.slots[slot] = tuple(live.tokens[:point])
            self.kept.add((live.namespace, tuple(live.tokens[:point])))
        self.store.slots[table.pages[0]] = tuple(live.tokens[:end])
        self.cache.commit(live.cached, live.tokens, end)
        live.stored = end
        return True

    def is_alone(self, live: Live) -> bool:
        return self.states.holdings.allocator.references(live.cached.tables[-1].pages[0]) == 1

    def end(self, live: Live, keep: bool) -> None:
        is_alone, num_snapshots = self.is_alone(live), len(list(self.states.snapshots))
        self.cache.release(live.cached, live.tokens, keep)
        self.live.remove(live)
        self.is_exact &= keep
        assert not live.is_private or len(list(self.states.snapshots)) <= num_snapshots
        if not keep:
            assert not self.states.match(live.namespace, token_key(live.tokens[: live.stored])).snapshots
        if keep and is_alone and not live.is_private:
            self.kept.add((live.namespace, tuple(live.tokens[: live.stored])))

    def check_hit(self, namespace: str, tokens: list[int], limit: int, num_tokens: int) -> None:
        assert num_tokens <= limit
        if not self.share:
            assert num_tokens == 0
        self.is_exact &= Inspector(self.cache).stats().evicted_pages == 0
        if self.is_exact:
            held = self.pages.match(namespace, token_key(tokens[:limit])).num_tokens
            found = [seen for name, seen in self.kept if name == namespace and tuple(tokens[: len(seen)]) == seen]
            assert num_tokens >= max((len(seen) for seen in found if len(seen) <= held), default=0)


class RoomyStates(StateMachine):
    """Nothing is evicted: every state that was copied is found again."""


class TightStates(StateMachine):
    """Nearly every copy evicts another."""

    num_slots = 4


class TightPagesAndStates(StateMachine):
    num_pages = 12
    num_slots = 5


class FewStates(StateMachine):
    """Copies at the ends of prompts and where they part only."""

    num_slots = 6
    interval = None


@dataclass(eq=False)
class Promise:
    """A lease of `tokens`, to be resumed after `resume_tokens` once the pages are sealed (`is_whole`)."""

    live: Live
    tokens: list[int]
    resume_tokens: int
    ends_at: float
    is_whole: bool


class LeasedStates(TightStates):
    """A leased state outlasts any other, and its lease ends on time."""

    num_pages = 40
    num_slots = 8
    share = True

    def __init__(self) -> None:
        super().__init__()
        self.promises: list[Promise] = []

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), cut=st.integers(0, 4), ttl=st.integers(1, 9))
    def lease(self, which: int, cut: int, ttl: int) -> None:
        live = self.pick(which)
        tokens = live.tokens[: max(live.stored - cut, 0)]
        if tokens:
            result = self.cache.leases.grant(live.namespace, tokens, Breakpoint(len(tokens), ttl))
            if result.granted:
                is_whole = self.hit(live.namespace, tokens) >= result.resume_tokens
                promise = Promise(live, tokens, result.resume_tokens, self.now + ttl, is_whole)
                self.promises.append(promise)

    @rule(seconds=st.integers(1, 6))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def leased_states_are_held(self) -> None:
        self.cache.leases.expire()
        live = {(each.namespace, each.prefix.key) for each in self.cache.leases}
        self.promises = [each for each in self.promises if self.now < each.ends_at]
        for promise in self.promises:
            assert (promise.live.namespace, token_key(promise.tokens)) in live
            found = self.states.match(promise.live.namespace, token_key(promise.tokens))
            assert self.states.resumable(found, promise.resume_tokens) == promise.resume_tokens
            if promise.is_whole:
                assert self.hit(promise.live.namespace, promise.tokens) >= promise.resume_tokens

    def hit(self, namespace: str, tokens: list[int]) -> int:
        return self.cache.match(namespace, tokens, len(tokens)).num_tokens

    def end(self, live: Live, keep: bool) -> None:
        is_alone = self.is_alone(live)
        super().end(live, keep)
        if not keep:
            left = {(each.namespace, each.prefix.key) for each in self.cache.leases}
            self.promises = [each for each in self.promises if (each.live.namespace, token_key(each.tokens)) in left]
        for promise in self.promises:
            promise.is_whole |= keep and is_alone and promise.live is live and not live.is_private

    @rule()
    def reset(self) -> None:
        super().reset()
        self.promises.clear()


class WithoutSharing(StateMachine):
    num_slots = 6
    share = False


OTHER_ORDERS = [
    type(f"StatesUnder{name}", (TightPagesAndStates,), {"policy": name}) for name in names("eviction") if name != "lru"
]


@pytest.mark.parametrize(
    "machine", [RoomyStates, TightStates, TightPagesAndStates, FewStates, LeasedStates, WithoutSharing, *OTHER_ORDERS]
)
def test_states_are_those_of_their_tokens(machine: type[StateMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=40))
