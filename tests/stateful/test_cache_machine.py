"""The cache against a model that keeps every sequence as a plain list of tokens.

Pages hold tokens here instead of keys and values, so wrong bytes are wrong tokens. The model knows which token
sequences were ever committed (a hit must be a prefix of one) and, until pages are evicted, which must still be held (a
hit must reach as far as the longest of them).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from host_pages import HostPages
from pagoda.cache.cache import Cache, CachedSequence
from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll, KeepRule, window_pages
from pagoda.cache.groups.table import NO_CELLS
from pagoda.cache.inspector import Inspector
from pagoda.cache.prefix.held import NO_PAGE, Reason
from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.prefix.tree import Node
from pagoda.config import TenantShare
from pagoda.errors import OutOfPagesError
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.registry import lookup, names

POISON = -1
GARBAGE = -2
OWN = 2
NAMESPACES = (Namespace(), Namespace("salt", tenant="tenant"))

# Two token ids make most prompts share something.
token_runs = st.lists(st.integers(0, 1), max_size=14)


class LastPageFirst(EvictionPolicy):
    """An order that has nothing to do with use."""

    def priority(self, node: Node) -> int:
        return -node.page


class EveryThird(KeepAll):
    """Layers resume only at every third token."""

    def resumable_tokens(self, num_matched_tokens: int) -> int:
        return num_matched_tokens - num_matched_tokens % 3


def window(reach: Reach, span: int, sink_tokens: int = 0) -> LayerGroup:
    return LayerGroup(reach, span, (AttentionLayout(1, 2, 2),), sink_tokens=sink_tokens)


class TokenStore(HostPages):
    """Pages of tokens."""

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        self.pages = [[POISON] * page_tokens for _ in range(num_pages)]

    def prepare(self, page: int) -> None:
        self.pages[page] = [POISON] * len(self.pages[page])

    def copy(self, source: int, target: int) -> None:
        self.pages[target] = list(self.pages[source])

    def bytes_of(self, page: int) -> list[int]:
        return self.pages[page]


@dataclass(frozen=True)
class GroupShape:
    """How one group of the cache under test is made."""

    num_pages: int
    page_tokens: int
    rule: KeepRule = field(default_factory=KeepAll)
    policy: EvictionPolicy = field(default_factory=LRU)


@dataclass(eq=False)
class Live:
    """A sequence under way: of `tokens`, the first `stored` are committed.

    `kept` has what was left, by group, when it was last compacted: which tokens, of how many. What it wrote after the
    `exact` tokens before that is its own. Of groups whose pages were `packed` it has which of their cells are whose.
    """

    cached: CachedSequence
    namespace: Namespace
    tokens: list[int]
    stored: int
    kept: dict[int, tuple[list[int], int]] = field(default_factory=dict)
    exact: int | None = None
    packed: dict[int, array[int]] = field(default_factory=dict)

    def slots(self, group: int) -> list[int]:
        """Which of its tokens a group has, in order."""
        kept, start = self.kept.get(group, ([], 0))
        return [*kept, *range(start, self.stored)]

    def bytes_at(self, position: int) -> int:
        """What pages have of a token: what does not follow from the tokens alone are other bytes."""
        is_own = self.exact is not None and position >= self.exact
        return self.tokens[position] + OWN * is_own


@dataclass
class Held:
    """What one group must hold (while `is_exact`), and what it may hold at all."""

    must: list[tuple[Namespace, tuple[int, ...]]] = field(default_factory=list)
    may: list[tuple[Namespace, tuple[int, ...]]] = field(default_factory=list)
    is_exact: bool = True


class CacheMachine(RuleBasedStateMachine):
    """Random use of one cache; subclasses choose its groups."""

    shapes: tuple[GroupShape, ...] = (GroupShape(12, 4),)
    share = True
    tenants: Mapping[str, TenantShare] = {}
    lifetime_seconds: float | None = None

    def __init__(self) -> None:
        super().__init__()
        self.groups = [
            PageGroup(s.num_pages, s.page_tokens, s.policy, s.rule, self.share, self.tenants) for s in self.shapes
        ]
        self.stores = [TokenStore(shape.num_pages, shape.page_tokens) for shape in self.shapes]
        self.now = 0.0
        self.cache = Cache(self.groups, self.stores, clock=lambda: self.now, lifetime_seconds=self.lifetime_seconds)
        self.live: list[Live] = []
        self.held = [Held() for _ in self.shapes]
        self.seen: list[list[int]] = [[]]
        self.evictions = [0 for _ in self.shapes]

    # What callers do

    @rule(
        namespace=st.sampled_from(NAMESPACES),
        ancestor=st.integers(0, 1000),
        cut=st.integers(0, 30),
        more=token_runs,
        limit_by=st.integers(0, 3),
    )
    def start(self, namespace: Namespace, ancestor: int, cut: int, more: list[int], limit_by: int) -> None:
        """A prompt that shares some tokens with an earlier one."""
        tokens = [*self.seen[ancestor % len(self.seen)][:cut], *more]
        limit = max(len(tokens) - limit_by, 0)
        hit = self.cache.match(namespace, tokens, limit)
        self.check_hit(namespace, tokens, limit, hit.num_tokens)
        num_new = len(tokens) - hit.num_tokens
        if self.cache.can_attach(hit, num_new):
            cached = self.cache.attach(hit, len(tokens))
            live = Live(cached, namespace, tokens, hit.num_tokens)
            self.live.append(live)
            assert self.cache.reserve(cached, num_new), "can_attach promised room for the new tokens"
            self.write_and_commit(live, num_new)
        else:
            self.attach_or_change_nothing(hit, namespace, tokens)
        self.seen.append(tokens)

    def attach_or_change_nothing(self, hit, namespace: Namespace, tokens: list[int]) -> None:
        before = self.snapshot()
        try:
            cached = self.cache.attach(hit, len(tokens))
        except OutOfPagesError:
            assert self.snapshot() == before
        else:
            self.live.append(Live(cached, namespace, tokens[: hit.num_tokens], hit.num_tokens))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), more=token_runs, chunk=st.integers(1, 9))
    def grow(self, which: int, more: list[int], chunk: int) -> None:
        """Compute more tokens of a sequence, in chunks."""
        live = self.pick(which)
        live.tokens = [*live.tokens, *more]
        while live.stored < len(live.tokens):
            num_tokens = min(chunk, len(live.tokens) - live.stored)
            before = self.snapshot()
            promised = self.cache.can_reserve(live.cached, num_tokens)
            reserved = self.cache.reserve(live.cached, num_tokens)
            assert reserved == promised
            if not reserved:
                assert self.snapshot() == before
                break
            self.write_and_commit(live, num_tokens)
        self.seen.append(live.tokens)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000))
    def fork(self, which: int) -> None:
        live = self.pick(which)
        twin = self.cache.fork(live.cached)
        kept, packed = dict(live.kept), dict(live.packed)
        self.live.append(Live(twin, live.namespace, live.tokens, live.stored, kept, live.exact, packed))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), keep=st.sampled_from((True, True, True, False)))
    def release(self, which: int, keep: bool) -> None:
        self.end(self.pick(which), keep)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), num_tokens=st.integers(1, 9), keep=st.booleans())
    def cancel_while_writing(self, which: int, num_tokens: int, keep: bool) -> None:
        """Pages are reserved and half written when the sequence ends: nobody may ever read that."""
        live = self.pick(which)
        if self.cache.reserve(live.cached, num_tokens):
            self.write(live, [GARBAGE] * num_tokens)
        self.end(live, keep)

    @rule()
    def reset(self) -> None:
        idle = sum(group.holdings.counts.idle for group in self.groups)
        assert self.cache.reset() == idle
        assert all(group.holdings.counts.idle == 0 for group in self.groups)
        for held, shape, group in zip(self.held, self.shapes, self.groups, strict=True):
            held.is_exact = shape.rule.span is None  # what windows have left behind goes, too
            held.must = [self.whole_pages(live, shape) for live in self.live if live.exact is None]
            self.evictions[self.groups.index(group)] = group.holdings.num_evicted(Reason.ROOM)

    # What holds after every step

    @invariant()
    def bookkeeping_agrees(self) -> None:
        Inspector(self.cache).check_integrity()
        for index, group in enumerate(self.groups):
            size = group.page_tokens
            open_pages, sealed = set(), set()
            for live in self.live:
                table, num_slots = live.cached.tables[index], len(live.slots(index))
                assert (table.num_tokens, table.num_slots) == (live.stored, num_slots)
                assert len(table.pages) == -(-num_slots // size)
                assert table.cell_starts == live.packed.get(index, NO_CELLS)
                sealed.update(set(table.pages[: num_slots // size]) - {NO_PAGE})
                open_pages.update(table.pages[num_slots // size :])
            counts = group.holdings.counts
            assert (len(open_pages), len(sealed)) == (counts.open, counts.in_use)
            assert counts.free + counts.open + counts.in_use + counts.idle == counts.total

    @invariant()
    def every_sequence_reads_its_own_tokens(self) -> None:
        for live in self.live:
            for index, (group, store) in enumerate(zip(self.groups, self.stores, strict=True)):
                table, size, slots = live.cached.tables[index], group.page_tokens, live.slots(index)
                places = [*range(table.num_sinks * size), *range(table.num_dropped * size, len(slots))]
                read = [store.pages[table.pages[i // size]][i % size] for i in places]
                assert read == [live.bytes_at(slots[i]) for i in places]

    @invariant()
    def windows_hold_what_they_need_and_little_more(self) -> None:
        for index, shape in enumerate(self.shapes):
            size = shape.page_tokens
            for live in self.live:
                table = live.cached.tables[index]
                assert table.num_dropped * size <= shape.rule.first_needed(live.stored)
                if shape.rule.span is not None:
                    needed = live.stored - shape.rule.first_needed(live.stored)
                    written = -(-live.stored // size) - table.num_dropped
                    assert written <= max(-(-needed // size) + 1, 2)
                    assert written <= window_pages(shape.rule.span, size, 0)
                assert table.num_sinks == min(-(-shape.rule.sink_tokens // size), table.num_dropped)

    @invariant()
    def a_page_in_the_tree_holds_the_tokens_of_its_key(self) -> None:
        for group, store in zip(self.groups, self.stores, strict=True):
            for node in group.prefixes.tree.nodes():
                if node.page != NO_PAGE:
                    assert token_key([token for token in store.pages[node.page] if token >= 0]).startswith(node.key)

    def teardown(self) -> None:
        """When all sequences have ended, every page is free or idle, and every idle page can be had."""
        for live in list(self.live):
            self.end(live, keep=True)
        self.bookkeeping_agrees()
        self.cache.reset()
        assert all(group.holdings.counts.free == group.holdings.counts.total for group in self.groups)
        assert all(group.prefixes.tree.num_nodes == 0 for group in self.groups)

    # The model

    def pick(self, which: int) -> Live:
        return self.live[which % len(self.live)]

    def write(self, live: Live, tokens: list[int]) -> None:
        for index, (group, store) in enumerate(zip(self.groups, self.stores, strict=True)):
            pages = live.cached.tables[index].pages
            for slot, token in enumerate(tokens, start=len(live.slots(index))):
                store.pages[pages[slot // group.page_tokens]][slot % group.page_tokens] = token

    def write_and_commit(self, live: Live, num_tokens: int) -> None:
        end = live.stored + num_tokens
        self.write(live, [live.bytes_at(position) for position in range(live.stored, end)])
        self.cache.commit(live.cached, live.tokens, end)
        live.stored = end
        if live.exact is not None:
            return
        for held, shape in zip(self.held, self.shapes, strict=True):
            held.must.append(self.whole_pages(live, shape))
            held.may.append((live.namespace, tuple(live.tokens[:end])))

    def end(self, live: Live, keep: bool) -> None:
        has_own_tails = live.exact is None and self.has_own_tails(live)
        self.cache.release(live.cached, live.tokens, keep)
        self.live.remove(live)
        for held in self.held:
            held.is_exact &= keep
            # A tail that a fork still writes is kept when the fork ends.
            if keep and has_own_tails:
                held.must.append((live.namespace, tuple(live.tokens[: live.stored])))

    def has_own_tails(self, live: Live) -> bool:
        return all(
            group.holdings.allocator.references(table.pages[live.stored // group.page_tokens]) == 1
            for group, table in zip(self.groups, live.cached.tables, strict=True)
            if live.stored % group.page_tokens
        )

    def whole_pages(self, live: Live, shape: GroupShape) -> tuple[Namespace, tuple[int, ...]]:
        return live.namespace, tuple(live.tokens[: live.stored - live.stored % shape.page_tokens])

    def check_hit(self, namespace: Namespace, tokens: list[int], limit: int, num_tokens: int) -> None:
        for index, group in enumerate(self.groups):
            self.held[index].is_exact &= group.holdings.num_evicted(Reason.ROOM) == self.evictions[index]
        most = self.resumable(min(longest(held.may, namespace, tokens) for held in self.held), limit)
        assert num_tokens <= most
        if self.share and all(held.is_exact for held in self.held):
            least = self.resumable(min(longest(held.must, namespace, tokens) for held in self.held), limit)
            assert num_tokens >= least
        if not self.share:
            assert num_tokens == 0

    def resumable(self, num_tokens: int, limit: int) -> int:
        """The deepest point up to `num_tokens` from which every group resumes."""
        return max(
            n for n in range(min(num_tokens, limit) + 1) if all(s.rule.resumable_tokens(n) == n for s in self.shapes)
        )

    def snapshot(self) -> object:
        return (
            [group.holdings.counts for group in self.groups],
            [{node.page: node.key for node in group.prefixes.tree.nodes()} for group in self.groups],
            [[(table.num_tokens, list(table.pages)) for table in live.cached.tables] for live in self.live],
            [[list(page) for page in store.pages] for store in self.stores],
        )


def longest(held: list[tuple[Namespace, tuple[int, ...]]], namespace: Namespace, tokens: list[int]) -> int:
    """The longest prefix of `tokens` that any of the `held` sequences of `namespace` starts with."""
    return max((common(sequence, tokens) for name, sequence in held if name == namespace), default=0)


def common(left: tuple[int, ...], right: list[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


class RoomyCache(CacheMachine):
    """Nothing is ever evicted: hits must be as long as they can be."""

    shapes = (GroupShape(400, 4),)


class TightCache(CacheMachine):
    """Nearly every allocation evicts."""

    shapes = (GroupShape(6, 4),)


class TwoGroups(CacheMachine):
    """Groups of different page sizes, pools and policies; the second resumes only at every third token."""

    shapes = (GroupShape(16, 4), GroupShape(9, 6, EveryThird(), LastPageFirst()))


class TwoRoomyGroups(CacheMachine):
    shapes = (GroupShape(400, 4), GroupShape(400, 6, EveryThird()))


class WithoutSharing(CacheMachine):
    shapes = (GroupShape(12, 4), GroupShape(8, 4, window(Reach.SLIDING, 6)))
    share = False


class RoomyWindows(CacheMachine):
    """What a window leaves behind stays hittable: while nothing is evicted, hits are those of full attention."""

    shapes = (
        GroupShape(400, 4, window(Reach.SLIDING, 6)),
        GroupShape(400, 4),
        GroupShape(400, 2, window(Reach.CHUNKED, 8)),
    )


class TightWindows(CacheMachine):
    """Pages are evicted from under those that continue them."""

    shapes = (GroupShape(7, 4, window(Reach.SLIDING, 6)), GroupShape(24, 4), GroupShape(9, 2, window(Reach.CHUNKED, 4)))


class WindowsAfterSinks(CacheMachine):
    """The first tokens stay, however far a window moves on: within a page, and over some."""

    shapes = (
        GroupShape(14, 4, window(Reach.SLIDING, 6, sink_tokens=3)),
        GroupShape(14, 2, window(Reach.SLIDING, 3, 5)),
    )


class TinyWindow(CacheMachine):
    """A window shorter than a page, and nothing else."""

    shapes = (GroupShape(9, 4, window(Reach.SLIDING, 1)),)


class Forgetful(CacheMachine):
    """What lies unused goes after a time, and so nothing that was in use since."""

    shapes = (GroupShape(40, 4), GroupShape(40, 2, window(Reach.SLIDING, 6)))
    lifetime_seconds = 10.0

    @rule(seconds=st.sampled_from((0.01, 1, 4, 11)))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        before = sum(group.holdings.num_evicted(Reason.EXPIRED) for group in self.groups)
        self.cache.expire()
        if sum(group.holdings.num_evicted(Reason.EXPIRED) for group in self.groups) > before:
            for held in self.held:
                held.is_exact = False
        if seconds > self.lifetime_seconds:
            assert not any(group.holdings.counts.idle for group in self.groups)


def under(name: str) -> type[CacheMachine]:
    """Both rules of keeping, short of pages, in the order of a registered policy."""
    policy = lookup("eviction", name)()
    shapes = (GroupShape(9, 4, policy=policy), GroupShape(7, 4, window(Reach.SLIDING, 6), policy))
    return type(f"Under{name}", (CacheMachine,), {"shapes": shapes})


MACHINES = (
    RoomyCache,
    TightCache,
    TwoGroups,
    TwoRoomyGroups,
    WithoutSharing,
    RoomyWindows,
    TightWindows,
    WindowsAfterSinks,
    TinyWindow,
    Forgetful,
    *map(under, names("eviction")),
)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_cache_behaves_like_a_list_of_tokens(machine: type[CacheMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=40))
