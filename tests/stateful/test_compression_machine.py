"""A cache whose sequences are compacted at any moment, against the model of test_cache_machine.py.

The model knows which tokens each sequence has kept, slot by slot. Nobody else reads what was written after that; what
could be hit before still can. What is left of some is found by others, who go on from there each for itself.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from pagoda.cache.compression.random import RandomTokens
from pagoda.cache.groups.compacted import CompactedKey
from pagoda.cache.inspector import Inspector
from pagoda.cache.prefix.held import Reason
from pagoda.cache.prefix.keys import key_tokens, token_key
from pagoda.cache.sequence import Hit, Kept
from pagoda.errors import OutOfPagesError
from stateful import test_cache_machine as machines
from stateful.test_cache_machine import NAMESPACES, POISON, CacheMachine, GroupShape, Live, window


@dataclass(frozen=True)
class Left:
    """What a sequence was left that others may find: which of so many tokens, and which cells are whose, by group."""

    kept: dict[int, tuple[list[int], int]]
    packed: dict[int, array[int]]


class Compacting(CacheMachine):
    """Groups that keep all are left some tokens, or all of them, as other groups are."""

    def __init__(self) -> None:
        super().__init__()
        self.left: dict[CompactedKey, Left] = {}
        self.findable: set[CompactedKey] = set()
        self.num_gone_before = 0

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), keep=st.booleans(), shares=st.booleans(), draw=st.randoms(use_true_random=False))
    def compact(self, which: int, keep: bool, shares: bool, draw: random.Random) -> None:
        live = self.pick(which)
        chosen = self.choose(live, draw)
        if not chosen:
            return
        keeps_tails = len(chosen) == len(self.groups) and live.exact is None and self.has_own_tails(live)
        bodies = {index: self.bodies(live, index, kept) for index, kept in chosen.items()}
        for index, (num_slots, _, _) in bodies.items():
            if num_slots % self.groups[index].page_tokens == 0 and draw.random() < 0.5:
                live.packed[index] = array("i", [0, num_slots])
                bodies[index] = bodies[index]._replace(cell_starts=live.packed[index])
        live.kept |= {index: (kept, live.stored) for index, kept in chosen.items()}
        key = self.key_of(live, tuple(chosen)) if shares and live.exact is None else None
        live.exact = live.stored if live.exact is None else live.exact
        num_hit, num_evicted, room = self.num_hit(live), self.num_evicted(), self.room()
        try:
            self.cache.compact(live.cached, live.tokens, bodies, key)
        except OutOfPagesError:
            assert any(len(pages) > room[index] for index, (_, pages, _) in bodies.items())
            Inspector(self.cache).check_integrity()
            self.end(live, keep)
            return
        assert self.num_hit(live) >= num_hit or self.num_evicted() > num_evicted
        if key is not None:
            self.check_is_found(key, live)
        if keeps_tails:
            for held in self.held:
                held.must.append((live.namespace, tuple(live.tokens[: live.stored])))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), keep=st.booleans(), draw=st.randoms(use_true_random=False))
    def drop_middle(self, which: int, keep: bool, draw: random.Random) -> None:
        """First pages are written anew, here with what they had, and the last ones stay where they are."""
        live = self.pick(which)
        chosen, bodies = {}, {}
        for index, group in enumerate(self.groups):
            size, slots, table = group.page_tokens, live.slots(index), live.cached.tables[index]
            is_shared = bool(group.prefixes.compacted.of(table.pages))
            if index in live.packed or self.shapes[index].rule.span is not None or is_shared:
                continue
            if table.num_omitted and len(slots) == len(table.pages) * size:
                first = draw.randint(0, len(table.pages) - 1)
                last = draw.randint(int(first == 0), len(table.pages) - first)
                chosen[index] = slots[: first * size] + slots[len(slots) - last * size :]
                bodies[index] = last, self.bodies(live, index, slots[: first * size]).bodies
        if not chosen:
            return
        live.kept |= {index: (kept, live.stored) for index, kept in chosen.items()}
        room = self.room()
        try:
            self.cache.drop_middle(live.cached, bodies)
        except OutOfPagesError:
            assert any(len(pages) > room[index] for index, (_, pages) in bodies.items())
            Inspector(self.cache).check_integrity()
            self.end(live, keep)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000))
    def branch(self, which: int) -> None:
        """A fork that keeps to itself what it writes."""
        live = self.pick(which)
        exact = live.stored if live.exact is None else live.exact
        twin, kept, packed = self.cache.branch(live.cached), dict(live.kept), dict(live.packed)
        self.live.append(Live(twin, live.namespace, live.tokens, live.stored, kept, exact, packed))

    @precondition(lambda self: self.left)
    @rule(which=st.integers(0, 1000), more=st.lists(st.integers(0, 1), max_size=6), cut=st.sampled_from((0, 0, 0, 1)))
    def start_compacted(self, which: int, more: list[int], cut: int) -> None:
        """A prompt begins with what one was compressed to, or with fewer tokens."""
        key, left = list(self.left.items())[which % len(self.left)]
        tokens = key_tokens(key.tokens)
        asked = key._replace(tokens=token_key(tokens[: len(tokens) - cut]))
        if asked not in self.left:
            assert self.cache.match_compacted(asked, tokens) is None
            return
        hit = self.cache.match_compacted(key, [*tokens, *more])
        if hit is None:
            return
        assert hit.num_tokens == len(tokens)
        fits = self.cache.can_attach(hit, len(more))
        if (live := self.attach_or_nothing(hit, key, left)) is None:
            assert not fits
        elif fits:
            assert self.cache.reserve(live.cached, len(more)), "can_attach promised room for the new tokens"
            live.tokens = [*tokens, *more]
            self.write_and_commit(live, len(more))

    def attach_or_nothing(self, hit: Hit, key: CompactedKey, left: Left) -> Live | None:
        before, num_hits = self.snapshot(), self.cache.num_compacted_hits
        try:
            cached = self.cache.attach(hit, hit.num_tokens)
        except OutOfPagesError:
            assert (self.snapshot(), self.cache.num_compacted_hits) == (before, num_hits)
            return None
        assert self.cache.num_compacted_hits == num_hits + 1
        tokens = key_tokens(key.tokens)
        live = Live(cached, key.namespace, tokens, len(tokens), dict(left.kept), len(tokens), dict(left.packed))
        self.live.append(live)
        return live

    def end(self, live: Live, keep: bool) -> None:
        doubted = [set(group.prefixes.compacted.of(live.cached.tables[i].pages)) for i, group in enumerate(self.groups)]
        super().end(live, keep)
        if not keep:
            self.findable.clear()
            for each, group in zip(doubted, self.groups, strict=True):
                assert each.isdisjoint(group.prefixes.compacted), "they may be wrong"

    @invariant()
    def what_is_found_stays_so_until_something_goes(self) -> None:
        if self.num_gone() != self.num_gone_before:
            self.findable.clear()
            self.num_gone_before = self.num_gone()
        for key in self.findable:
            assert self.cache.match_compacted(key, key_tokens(key.tokens)) is not None

    def key_of(self, live: Live, groups: tuple[int, ...]) -> CompactedKey:
        """The same where the same is left."""
        packed = {index: live.packed[index].tolist() for index in live.packed}
        seed = hash(repr((sorted(live.kept.items()), sorted(packed.items()))))
        tokens = token_key(live.tokens[: live.stored])
        return CompactedKey(live.namespace, RandomTokens(tokens=2, seed=seed), groups, tokens)

    def check_is_found(self, key: CompactedKey, live: Live) -> None:
        """Right after it was kept, if there was a page for each copy of the last tokens."""
        self.left[key] = Left(dict(live.kept), dict(live.packed))
        hit = self.cache.match_compacted(key, key_tokens(key.tokens))
        had_room = all(group.holdings.counts.total >= 400 for group in self.groups)
        is_whole = len(key.groups) == len(self.groups)
        assert hit is None or self.share
        assert hit is not None or not (self.share and had_room and is_whole)
        for namespace in NAMESPACES:
            other = key._replace(namespace=namespace)
            assert self.cache.match_compacted(other, key_tokens(key.tokens)) is None or other in self.left
        if hit is not None:
            self.findable.add(key)

    def num_gone(self) -> int:
        return sum(group.holdings.num_evicted(reason) for group in self.groups for reason in Reason)

    def choose(self, live: Live, draw: random.Random) -> dict[int, list[int]]:
        """Which tokens are left in the groups that are to have fewer."""
        chosen = {}
        for index, shape in enumerate(self.shapes):
            slots = live.slots(index)
            kept = sorted(draw.sample(slots, draw.randint(min(1, len(slots)), len(slots))))
            if shape.rule.span is None and len(kept) < len(slots) and index not in live.packed:
                chosen[index] = kept
        return chosen

    def bodies(self, live: Live, index: int, kept: list[int]) -> Kept:
        size = self.groups[index].page_tokens
        tokens = [live.bytes_at(position) for position in kept] + [POISON] * (-len(kept) % size)
        return Kept(len(kept), [tokens[start : start + size] for start in range(0, len(tokens), size)])

    def num_hit(self, live: Live) -> int:
        return self.cache.match(live.namespace, live.tokens, live.stored).num_tokens

    def num_evicted(self) -> int:
        return sum(group.holdings.num_evicted(Reason.ROOM) for group in self.groups)

    def room(self) -> list[int]:
        return [group.holdings.counts.free + group.holdings.counts.idle for group in self.groups]


class WindowsBeside(CacheMachine):
    """Full attention is short of pages, windows are not."""

    shapes = (GroupShape(9, 4), GroupShape(60, 4, window(machines.Reach.SLIDING, 6)))


MACHINES = (
    machines.RoomyCache,
    machines.TightCache,
    machines.TwoGroups,
    machines.TwoRoomyGroups,
    machines.WithoutSharing,
    machines.RoomyWindows,
    machines.TightWindows,
    machines.Forgetful,
    WindowsBeside,
)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_compacted_sequence_has_what_it_kept_and_shares_no_more(machine: type[CacheMachine]) -> None:
    compacting = type(f"Compacting{machine.__name__}", (Compacting, machine), {})
    run_state_machine_as_test(compacting, settings=settings(max_examples=25, stateful_step_count=40))
