"""A cache whose sequences are compacted at any moment, against the model of test_cache_machine.py.

The model knows which tokens each sequence has kept, slot by slot. Nobody else reads what was written after that; what
could be hit before still can.
"""

import random
from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from pagoda.cache.inspector import Inspector
from pagoda.cache.prefix.held import Reason
from pagoda.cache.sequence import Kept
from pagoda.errors import OutOfPagesError
from stateful import test_cache_machine as machines
from stateful.test_cache_machine import POISON, CacheMachine, GroupShape, Live, window


class Compacting(CacheMachine):
    """Groups that keep all are left some tokens, or all of them, as other groups are."""

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1000), keep=st.booleans(), draw=st.randoms(use_true_random=False))
    def compact(self, which: int, keep: bool, draw: random.Random) -> None:
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
        live.exact = live.stored if live.exact is None else live.exact
        num_hit, num_evicted, room = self.num_hit(live), self.num_evicted(), self.room()
        try:
            self.cache.compact(live.cached, live.tokens, bodies)
        except OutOfPagesError:
            assert any(len(pages) > room[index] for index, (_, pages, _) in bodies.items())
            Inspector(self.cache).check_integrity()
            self.end(live, keep)
            return
        assert self.num_hit(live) >= num_hit or self.num_evicted() > num_evicted
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
            if index in live.packed or self.shapes[index].rule.span is not None:
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
