"""A cache and tiers that lose, damage and mix up records, against the plain lists of tokens that sequences have.

Pages hold tokens here instead of keys and values, and states a digest of all tokens before them, so wrong bytes are
wrong tokens. Processes end and start again over the same tiers; loads are called off before, while and after they read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from host_pages import HostPages
from pagoda.cache.cache import Cache, CachedSequence
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.base import CacheGroup
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.groups.state import SnapshotRule, StateGroup
from pagoda.cache.groups.table import ResumePoints
from pagoda.cache.inspector import Inspector
from pagoda.cache.prefix.held import NO_PAGE, Reason
from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.names import Identity, PageNames
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.residency.admission import WritePolicy
from pagoda.cache.residency.labels import Labels, Layout
from pagoda.cache.residency.movers import ThreadMovers
from pagoda.cache.residency.residency import Residency
from pagoda.cache.tiers.base import Put, Tier, TierSettings, TierStats
from pagoda.cache.tiers.record import Kind
from pagoda.errors import OutOfPagesError, TierError
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import LayerGroup, Reach

PAGE_TOKENS = 4
NUM_PAGES = 14
NUM_SLOTS = 5
MOST_TOKENS = 40
GARBAGE = 99
STATE_NBYTES = 8
NAMESPACES = (Namespace(), Namespace("salt", tenant="tenant"))
# Two token ids make most prompts share something.
token_runs = st.lists(st.integers(0, 1), min_size=1, max_size=14)
# Prompts mostly go on from one that came a short while ago.
ancestors = st.integers(0, 3)
cuts = st.sampled_from((100, 100, 100, 13, 8, 5, 0))


class TokenPages(HostPages):
    """Pages of tokens, an int32 each."""

    def __init__(self, num_pages: int) -> None:
        self.tokens = np.full((num_pages, PAGE_TOKENS), GARBAGE, np.int32)

    def prepare(self, page: int) -> None:
        self.tokens[page] = GARBAGE

    def copy(self, source: int, target: int) -> None:
        self.tokens[target] = self.tokens[source]

    def bytes_of(self, page: int) -> Any:
        return self.tokens[page].view(np.uint8)

    def blank(self, body: Any, num_tokens: int) -> None:
        body.view(np.int32)[num_tokens:] = 0

    def compute(self, page: int, start: int, tokens: Sequence[int]) -> None:
        """Write tokens behind the first `start` of a page."""
        self.tokens[page, start : start + len(tokens)] = tokens

    def check(self, page: int, tokens: Sequence[int]) -> None:
        """A page begins with these."""
        assert self.tokens[page, : len(tokens)].tolist() == list(tokens)

    def check_garbage(self, page: int) -> None:
        assert (self.tokens[page] == GARBAGE).all()


class States(HostPages):
    """Slots of states: a digest of the tokens before them."""

    def __init__(self, num_slots: int) -> None:
        self.slots = np.zeros((num_slots, STATE_NBYTES), np.uint8)

    def prepare(self, page: int) -> None:
        self.slots[page] = GARBAGE

    def copy(self, source: int, target: int) -> None:
        self.slots[target] = self.slots[source]

    def bytes_of(self, page: int) -> Any:
        return self.slots[page]

    def blank(self, body: Any, num_tokens: int) -> None:
        raise AssertionError("a state is whole")

    def compute(self, page: int, tokens: Sequence[int]) -> None:
        self.slots[page] = state_of(tokens)

    def check(self, page: int, tokens: Sequence[int]) -> None:
        assert (self.slots[page] == state_of(tokens)).all()

    def check_garbage(self, page: int) -> None:
        assert (self.slots[page] == GARBAGE).all()


def state_of(tokens: Sequence[int]) -> Any:
    return np.frombuffer(blake2b(token_key(tokens), digest_size=STATE_NBYTES).digest(), np.uint8)


class FaultyTier(Tier):
    """A dictionary, until `fault` does something to what is asked for."""

    def __init__(self, name: str, persists: bool) -> None:
        self.records: dict[bytes, bytes] = {}
        self.mischief: Callable[[FaultyTier, bytes], bytes | None] | None = None
        self._name = name
        self._persists = persists

    @classmethod
    def open(cls, settings: TierSettings) -> Tier:
        raise NotImplementedError

    @property
    def name(self) -> str:
        return self._name

    @property
    def persists(self) -> bool:
        return self._persists

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return [key in self.records for key in keys]

    def get(self, keys: Sequence[bytes]) -> list[Any]:
        return [self._one(key) for key in keys]

    def _one(self, key: bytes) -> bytes | None:
        return self.records.get(key) if self.mischief is None else self.mischief(self, key)

    def put(self, records: Sequence[Put]) -> list[bool]:
        self.records |= {key: bytes(record) for key, record in records}
        return [True] * len(records)

    def drop(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self.records.pop(key, None)

    def clear(self) -> None:
        self.records.clear()

    def flush(self) -> None: ...

    def stats(self) -> TierStats:
        return TierStats()

    def close(self) -> None: ...


def _flipped(tier: FaultyTier, key: bytes) -> bytes | None:
    record = bytearray(tier.records.get(key, b""))
    if record:
        record[key[-1] * len(record) // 256] ^= 1 << key[-2] % 8
    return bytes(record) or None


def _raised(tier: FaultyTier, key: bytes) -> bytes | None:
    raise TierError("the disk is on fire")


FAULTS: dict[str, Callable[[FaultyTier, bytes], bytes | None] | None] = {
    "none": None,
    "gone": lambda _tier, _key: None,
    "flipped": _flipped,
    "short": lambda tier, key: tier.records.get(key, b"")[:-1] or None,
    "another": lambda tier, key: next((value for other, value in tier.records.items() if other != key), None),
    "raised": _raised,
}


class LaterExecutor:
    """Runs what is submitted when it is told to."""

    def __init__(self) -> None:
        self.tasks: list[Callable[[], None]] = []

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.tasks.append(lambda: future.set_result(function(*arguments)))
        return future

    def run(self) -> None:
        tasks, self.tasks = self.tasks, []
        for task in tasks:
            task()

    def shutdown(self, **_: Any) -> None: ...


@dataclass(eq=False)
class Live:
    """A sequence under way: of `tokens`, the first `stored` are committed."""

    cached: CachedSequence
    namespace: Namespace
    tokens: list[int]
    stored: int


@dataclass(frozen=True)
class Shape:
    """Groups of pages by their rules, and whether there are states as well."""

    rules: tuple[Any, ...] = (KeepAll(),)
    has_states: bool = False
    policy: WritePolicy = WritePolicy.SEAL


class TierMachine(RuleBasedStateMachine):
    shape = Shape()

    def __init__(self) -> None:
        super().__init__()
        self.tiers = [FaultyTier("host", persists=False), FaultyTier("disk", persists=True)]
        self.seen: list[list[int]] = [[]]
        self.start_process()

    def start_process(self) -> None:
        """A new cache over what the tiers hold."""
        groups: list[CacheGroup] = [PageGroup(NUM_PAGES, PAGE_TOKENS, LRU(), rule) for rule in self.shape.rules]
        self.stores: list[Any] = [self.make_pages() for _ in groups]
        kinds = [Kind.PAGE] * len(groups)
        if self.shape.has_states:
            groups.append(StateGroup(NUM_SLOTS, LRU(), SnapshotRule(None, PAGE_TOKENS)))
            self.stores.append(self.make_states())
            kinds.append(Kind.STATE)
        self.cache = Cache(groups, self.stores)
        layout = Layout(tuple(kinds), tuple(group.page_tokens for group in groups))
        labels = Labels(PageNames(Identity(page_tokens=PAGE_TOKENS)), layout)
        movers = self.make_movers()
        movers.close()
        self.executor = movers._readers = LaterExecutor()
        self.residency = Residency(self.cache, self.stores, labels, self.tiers, self.shape.policy, movers)
        self.live: list[Live] = []

    def make_pages(self) -> Any:
        return TokenPages(NUM_PAGES)

    def make_states(self) -> Any:
        return States(NUM_SLOTS)

    def make_movers(self) -> ThreadMovers:
        return ThreadMovers()

    @rule()
    def restart(self) -> None:
        """The process ends: what was in memory is gone."""
        self.residency.close()
        self.tiers[0].records.clear()
        self.start_process()

    @rule(
        namespace=st.sampled_from(NAMESPACES),
        ancestor=ancestors,
        cut=cuts,
        more=token_runs,
        timing=st.sampled_from(("whole", "whole", "whole", "before", "late")),
    )
    def start(self, namespace: Namespace, ancestor: int, cut: int, more: list[int], timing: str) -> None:
        """A prompt that shares some tokens with an earlier one, loaded as far as tiers have it."""
        tokens = [*self.seen[-1 - ancestor % len(self.seen)][:cut], *more][:MOST_TOKENS]
        limit = max(len(tokens) - 1, 0)
        hit = self.cache.match(namespace, tokens, limit)
        plan = self.residency.seek(hit, limit).result()
        self.seen.append(tokens)
        if plan is None or not self.load(plan, hit, tokens, timing):
            self.compute(namespace, tokens)

    def load(self, plan: Any, hit: Any, tokens: list[int], timing: str) -> bool:
        assert hit.num_tokens <= plan.num_tokens <= max(len(tokens) - 1, 0)
        before = self.counts()
        try:
            loading = self.residency.begin(hit, plan, ResumePoints(hit.branch_tokens, len(tokens)))
        except OutOfPagesError:
            assert self.counts()[1:] == before[1:]
            return False
        in_transit = sum(group.holdings.counts.in_transit for group in self.cache.groups)
        assert in_transit == sum(len(fill.pages) for fills in loading.fills for fill in fills) > 0
        if timing == "before":
            self.residency.give_up(loading)
            self.poison_free_pages()
            self.executor.run()
            self.check_free_pages()
            return False
        self.executor.run()
        if timing == "late":
            self.residency.give_up(loading)
            return False
        if not self.residency.settle(loading, tokens):
            assert any(tier.mischief for tier in self.tiers), "nothing fails unless it is told to"
            return False
        live = Live(loading.cached, hit.namespace, tokens, plan.num_tokens)
        self.live.append(live)
        self.check(live)
        self.go_on(live)
        return True

    def compute(self, namespace: Namespace, tokens: list[int]) -> None:
        hit = self.cache.match(namespace, tokens, max(len(tokens) - 1, 0))
        try:
            cached = self.cache.attach(hit, len(tokens))
        except OutOfPagesError:
            return
        live = Live(cached, namespace, tokens, hit.num_tokens)
        self.live.append(live)
        self.check(live)
        self.go_on(live)

    def go_on(self, live: Live) -> None:
        """Compute what is left, as far as there are pages; all at once, as states need their cuts."""
        num_tokens = len(live.tokens) - live.stored
        if not num_tokens or not self.cache.reserve(live.cached, num_tokens):
            live.tokens = live.tokens[: live.stored]
            return
        for group, store, table in zip(self.cache.groups, self.stores, live.cached.tables, strict=True):
            if group.snapshots is not None:
                store.compute(table.pages[0], live.tokens)
                for point, slot in table.cuts:
                    store.compute(slot, live.tokens[:point])
                continue
            for index in range(live.stored, len(live.tokens)):
                store.compute(table.pages[index // PAGE_TOKENS], index % PAGE_TOKENS, [live.tokens[index]])
        self.cache.commit(live.cached, live.tokens, len(live.tokens))
        live.stored = len(live.tokens)

    @rule(ends=st.booleans(), namespace=st.sampled_from(NAMESPACES), ancestor=ancestors, cut=cuts, more=token_runs)
    def come_back(self, ends: bool, namespace: Namespace, ancestor: int, cut: int, more: list[int]) -> None:
        """A prompt like an earlier one, once everything has left the pool."""
        while self.live:
            self.release(0, True)
        if ends:
            self.restart()
        else:
            self.evict_all()
            self.residency.flush()
        self.start(namespace, ancestor, cut, more, "whole")

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), more=token_runs)
    def grow(self, which: int, more: list[int]) -> None:
        live = self.live[which % len(self.live)]
        live.tokens = [*live.tokens, *more]
        self.go_on(live)
        self.seen.append(live.tokens)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), keep=st.sampled_from((True, True, True, False)))
    def release(self, which: int, keep: bool) -> None:
        live = self.live.pop(which % len(self.live))
        self.cache.release(live.cached, live.tokens, keep)

    @rule()
    def evict_all(self) -> None:
        """Others need all the room there is."""
        for group in self.cache.groups:
            group.holdings.evict_all(Reason.ROOM)

    @rule()
    def reset(self) -> None:
        self.cache.reset()

    @rule(which=st.integers(0, 1), fault=st.sampled_from(list(FAULTS)))
    def break_tier(self, which: int, fault: str) -> None:
        self.tiers[which].mischief = FAULTS[fault]

    @rule(which=st.integers(0, 1), share=st.integers(1, 4))
    def lose(self, which: int, share: int) -> None:
        """A tier loses records."""
        self.residency.flush()
        for number, key in enumerate(list(self.tiers[which].records)):
            if number % share == 0:
                del self.tiers[which].records[key]

    @invariant()
    def everything_adds_up(self) -> None:
        self.residency.flush()
        Inspector(self.cache).check_integrity()
        for group in self.cache.groups:
            counts = group.holdings.counts
            assert counts.in_transit == 0
            assert counts.free + counts.open + counts.in_use + counts.idle == counts.total
        for live in self.live:
            self.check(live)

    def check(self, live: Live) -> None:
        """Every token that the sequence keeps is where its table says."""
        for group, store, table in zip(self.cache.groups, self.stores, live.cached.tables, strict=True):
            if group.snapshots is not None:
                if live.stored:
                    store.check(table.pages[0], live.tokens[: live.stored])
                continue
            for index in table.held_indices:
                expected = live.tokens[index * PAGE_TOKENS : min((index + 1) * PAGE_TOKENS, live.stored)]
                page = table.pages[index]
                assert page != NO_PAGE
                store.check(page, expected)

    def counts(self) -> list[Any]:
        return [len(self.cache.sequences), *(group.holdings.counts.in_transit for group in self.cache.groups)]

    def poison_free_pages(self) -> None:
        for group, store in zip(self.cache.groups, self.stores, strict=True):
            for page in range(group.holdings.counts.total):
                if group.holdings.allocator.is_free(page):
                    store.prepare(page)

    def check_free_pages(self) -> None:
        """Nothing was written to pages that were given back."""
        for group, store in zip(self.cache.groups, self.stores, strict=True):
            for page in range(group.holdings.counts.total):
                if group.holdings.allocator.is_free(page):
                    store.check_garbage(page)

    def teardown(self) -> None:
        self.residency.close()


def window(span: int, sink_tokens: int = 0) -> LayerGroup:
    return LayerGroup(Reach.SLIDING, span, (AttentionLayout(1, 2, 2),), sink_tokens=sink_tokens)


SHAPES = {
    "all": Shape(),
    "evicted": Shape(policy=WritePolicy.EVICT),
    "second hit": Shape(policy=WritePolicy.SECOND_HIT),
    "window": Shape((window(6),)),
    "window beside all": Shape((KeepAll(), window(6))),
    "sinks": Shape((window(5, sink_tokens=3),)),
    "states": Shape((KeepAll(),), has_states=True),
    "states and windows": Shape((KeepAll(), window(9)), has_states=True, policy=WritePolicy.EVICT),
}


@pytest.mark.parametrize("name", SHAPES)
def test_tiers_never_bring_wrong_tokens(name: str) -> None:
    machine = type("Machine", (TierMachine,), {"shape": SHAPES[name]})
    run_state_machine_as_test(machine, settings=settings(max_examples=20, stateful_step_count=30, deadline=None))
