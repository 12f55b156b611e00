"""A cache of an encoder-decoder model against one that computes every encoder output anew.

A page holds the name of the input it was made of and its number among the pages of that input, so a page of another
input, or of none, is seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from pagoda.cache.cache import Cache, CachedSequence, NoBytes
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.cross import CrossGroup, CrossTable
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.inspector import Inspector
from pagoda.cache.leases import Breakpoint
from pagoda.cache.prefix.held import Reason
from pagoda.cache.prefix.namespace import Namespace

PAGE_TOKENS = 4
POISON = ("nothing", -1)
# Salt, input and length: equal inputs of tenants that share nothing, and lengths around those of pages.
NAMESPACES = (
    Namespace("", b"short", 1),
    Namespace("", b"page", PAGE_TOKENS),
    Namespace("", b"two", PAGE_TOKENS + 1),
    Namespace("salt", b"two", PAGE_TOKENS + 1),
    Namespace("", b"long", 5 * PAGE_TOKENS - 1),
)

namespaces = st.sampled_from(NAMESPACES)
token_runs = st.lists(st.integers(0, 1), min_size=1, max_size=9)


class OutputStore:
    """What each page holds, as `POISON` or (salt and input, number)."""

    def __init__(self, num_pages: int) -> None:
        self.pages: list[tuple[object, int]] = [POISON] * num_pages

    def prepare(self, page: int) -> None:
        self.pages[page] = POISON

    def copy(self, source: int, target: int) -> None:
        raise AssertionError("pages of encoder outputs are never copied")


@dataclass(eq=False)
class Live:
    cached: CachedSequence
    namespace: Namespace
    tokens: list[int]

    @property
    def table(self) -> CrossTable:
        table: CrossTable = self.cached.tables[1]
        return table


class CrossMachine(RuleBasedStateMachine):
    """Random use of one cache; subclasses choose its size."""

    num_pages = 400
    num_output_pages = 60
    share = True

    def __init__(self) -> None:
        super().__init__()
        self.store = OutputStore(self.num_output_pages)
        self.outputs = CrossGroup(self.num_output_pages, PAGE_TOKENS, LRU(), self.share)
        self.pages = PageGroup(self.num_pages, PAGE_TOKENS, LRU(), KeepAll(), self.share)
        self.now = 0.0
        self.cache = Cache([self.pages, self.outputs], [NoBytes(), self.store], clock=lambda: self.now)
        self.live: list[Live] = []
        self.kept: set[Namespace] = set()  # outputs that must be found while nothing is evicted
        self.decoded: dict[Namespace, list[list[int]]] = {}

    @rule(starts=st.lists(st.tuples(namespaces, token_runs), min_size=1, max_size=3))
    def start_in_one_step(self, starts: list[tuple[Namespace, list[int]]]) -> None:
        started = [live for start in starts if (live := self.attach(*start))]
        for live in started:
            self.write(live)
        for live in started:
            self.cache.commit(live.cached, live.tokens, len(live.tokens))
            self.kept.add(live.namespace)
            self.decoded.setdefault(live.namespace, []).append(live.tokens)

    @rule(starts=st.lists(st.tuples(namespaces, token_runs), min_size=1, max_size=3), writes=st.booleans())
    def fail_in_the_first_step(self, starts: list[tuple[Namespace, list[int]]], writes: bool) -> None:
        started = [live for start in starts if (live := self.attach(*start))]
        for live in started if writes else ():
            self.write(live)
        for live in started:
            self.end(live, keep=False)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), more=token_runs)
    def grow(self, which: int, more: list[int]) -> None:
        live = self.pick(which)
        if self.cache.reserve(live.cached, len(more)):
            live.tokens = [*live.tokens, *more]
            self.cache.commit(live.cached, live.tokens, len(live.tokens))
            self.decoded[live.namespace].append(live.tokens)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000))
    def fork(self, which: int) -> None:
        live = self.pick(which)
        self.live.append(Live(self.cache.fork(live.cached), live.namespace, live.tokens))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), keep=st.sampled_from((True, True, True, False)))
    def release(self, which: int, keep: bool) -> None:
        self.end(self.pick(which), keep)

    @rule()
    def reset(self) -> None:
        self.cache.reset()
        assert self.outputs.holdings.counts.idle == 0
        self.kept &= {live.namespace for live in self.live}

    @invariant()
    def bookkeeping_agrees(self) -> None:
        Inspector(self.cache).check_integrity()

    @invariant()
    def everybody_reads_what_was_made_of_its_input(self) -> None:
        for live in self.live:
            self.check_pages(live.namespace, live.table.pages)
            assert len(live.table.pages) == -(-live.namespace.num_encoder_tokens // PAGE_TOKENS)

    @invariant()
    def what_is_found_was_made_of_the_input(self) -> None:
        for namespace in NAMESPACES:
            entry = self.outputs.match(namespace, b"").entry
            if entry is not None:
                assert self.share and entry.is_written
                self.check_pages(namespace, entry.pages)

    def teardown(self) -> None:
        for live in list(self.live):
            self.end(live, keep=True)
        Inspector(self.cache).check_integrity()
        self.cache.reset()
        assert self.outputs.holdings.counts.free == self.outputs.holdings.counts.total

    def pick(self, which: int) -> Live:
        return self.live[which % len(self.live)]

    def check_pages(self, namespace: Namespace, pages: Sequence[int]) -> None:
        name = (namespace.salt, namespace.encoder_digest)
        assert [self.store.pages[page] for page in pages] == [(name, i) for i in range(len(pages))]

    def attach(self, namespace: Namespace, tokens: list[int]) -> Live | None:
        """A new sequence with room for its prompt, if it can be had."""
        hit = self.cache.match(namespace, tokens, len(tokens) - 1)
        self.check_hit(namespace, tokens, hit.num_tokens, hit.num_encoder_tokens)
        before = self.outputs.holdings.counts
        if not self.cache.can_attach(hit, len(tokens) - hit.num_tokens):
            assert self.outputs.holdings.counts == before
            return None
        live = Live(self.cache.attach(hit, len(tokens)), namespace, tokens)
        assert self.cache.reserve(live.cached, len(tokens) - hit.num_tokens)
        self.live.append(live)
        return live

    def write(self, live: Live) -> None:
        """What the step that a sequence starts in does for its encoder input."""
        if not live.table.entry.is_written:
            for index, page in enumerate(live.table.pages):
                self.store.pages[page] = ((live.namespace.salt, live.namespace.encoder_digest), index)

    def end(self, live: Live, keep: bool) -> None:
        self.cache.release(live.cached, live.tokens, keep)
        self.live.remove(live)

    def check_hit(self, namespace: Namespace, tokens: list[int], num_tokens: int, num_encoder_tokens: int) -> None:
        assert num_encoder_tokens in (0, namespace.num_encoder_tokens)
        if not self.share:
            assert num_tokens == num_encoder_tokens == 0
        elif namespace in self.kept and not self.outputs.holdings.num_evicted(Reason.ROOM):
            assert num_encoder_tokens == namespace.num_encoder_tokens
        shared = (common(tokens, each) for each in self.decoded.get(namespace, ()))
        assert num_tokens <= max(shared, default=0), "tokens of another input were hit"


def common(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


class RoomyOutputs(CrossMachine):
    """Nothing is evicted: every output is found again."""


class TightOutputs(CrossMachine):
    """The longest output needs nearly all pages."""

    num_output_pages = 7


class TightPages(CrossMachine):
    num_pages = 8
    num_output_pages = 12


class LeasedOutputs(TightOutputs):
    """A leased output is found until the lease ends; what is not leased may go."""

    num_output_pages = 8

    def __init__(self) -> None:
        super().__init__()
        self.leased: dict[Namespace, float] = {}

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), ttl=st.integers(1, 9))
    def lease(self, which: int, ttl: int) -> None:
        live = self.pick(which)
        before = self.outputs.holdings.counts
        if self.cache.leases.grant(live.namespace, live.tokens, Breakpoint(len(live.tokens), ttl)).granted:
            self.leased[live.namespace] = max(self.now + ttl, self.leased.get(live.namespace, 0.0))
        else:
            assert self.outputs.holdings.counts == before

    @rule(seconds=st.integers(1, 6))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def reset(self) -> None:
        super().reset()
        self.leased.clear()

    @invariant()
    def leased_outputs_are_held(self) -> None:
        self.cache.leases.expire()
        self.leased = {name: end for name, end in self.leased.items() if end > self.now}
        for namespace in self.leased:
            assert self.outputs.match(namespace, b"").entry is not None
        assert bool(Inspector(self.cache).leases()) >= bool(self.leased)

    def end(self, live: Live, keep: bool) -> None:
        super().end(live, keep)
        if not keep:  # decoder pages in doubt end leases of the same tokens
            names = {each.namespace for each in self.cache.leases}
            self.leased = {name: end for name, end in self.leased.items() if name in names}


class WithoutSharing(CrossMachine):
    num_output_pages = 12
    share = False


@pytest.mark.parametrize("machine", [RoomyOutputs, TightOutputs, TightPages, LeasedOutputs, WithoutSharing])
def test_outputs_are_those_of_their_inputs(machine: type[CrossMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=40))
