"""The scheduler over a real cache whose pages hold nothing: budgets, order, sharing, preemption, liveness."""

import random
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.cache.cache import Cache, NoBytes
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.inspector import Inspector
from pagoda.cache.leases import Breakpoint
from pagoda.config import TenantShare
from pagoda.engine import division
from pagoda.engine.batch import Batch
from pagoda.engine.breakpoints import lease_computed
from pagoda.engine.division import DECODE_TOKENS, SLICE_TOKENS, TURN_SLICES
from pagoda.engine.request import Phase, Request, RequestMetrics, Sequence
from pagoda.engine.request import Sequence as Planned
from pagoda.engine.round import Limits
from pagoda.engine.scheduler import Scheduler
from pagoda.engine.waiting import PRESENT_TOKENS
from pagoda.sampling_params import SamplingParams

PAGE_TOKENS = 4


@dataclass
class Loop:
    """The engine without a model: each completed sequence gets one more token, until `max_tokens`."""

    num_pages: int = 64
    page_tokens: int = PAGE_TOKENS
    max_num_seqs: int = 8
    budget: int = 32
    share: bool = True
    tenants: Mapping[str, TenantShare] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    now: float = 0.0
    requests: list[Request] = field(default_factory=list)
    num_steps: int = 0

    def __post_init__(self) -> None:
        group = PageGroup(self.num_pages, self.page_tokens, LRU(), KeepAll(), self.share, self.tenants)
        self.cache = Cache([group], [NoBytes()], clock=lambda: self.now)
        self.scheduler = Scheduler(self.cache, Limits(self.max_num_seqs, self.budget, weights=self.weights or {}))

    def add(self, prompt, max_tokens=1, n=1, tenant="", breakpoints=()) -> Request:
        number = len(self.requests)
        params = SamplingParams(max_tokens=max_tokens, n=n)
        request = Request(str(number), list(prompt), params, RequestMetrics(arrival=0.0), tenant=tenant)
        request.breakpoints = breakpoints
        self.requests.append(request)
        self.scheduler.add(self.new_sequence(request, 0))
        return request

    def new_sequence(self, request: Request, index: int) -> Sequence:
        sequence = Sequence(request, index, array("i", request.prompt), random.Random(index))
        request.sequences.append(sequence)
        return sequence

    def step(self) -> dict[Planned, int]:
        """One step of the engine, checking what holds for every plan."""
        self.num_steps += 1
        plan = counts(self.scheduler.schedule())
        assert sum(plan.values()) <= self.budget
        assert all(num_tokens > 0 for num_tokens in plan.values())
        assert set(plan) <= set(self.scheduler.running)
        for sequence, num_tokens in plan.items():
            sequence.request.metrics.num_computed_tokens += num_tokens
            self.cache.commit(sequence.cached, sequence.tokens, sequence.cached.num_tokens + num_tokens)
            lease_computed(self.cache, sequence)
        for sequence in [sequence for sequence in plan if sequence.num_uncomputed == 0]:
            self.complete(sequence)
        assert len(self.scheduler.running) <= self.max_num_seqs
        Inspector(self.cache).check_integrity()
        return plan

    def complete(self, sequence: Sequence) -> None:
        request = sequence.request
        twins = [self.new_sequence(request, i) for i in range(len(request.sequences), request.params.n)]
        self.scheduler.fork(sequence, twins)
        for sample in (sequence, *twins):
            sample.tokens.append(1000 + sample.index)
            if sample.num_output_tokens == request.params.max_tokens:
                self.scheduler.remove(sample)

    def run(self, max_steps: int = 10_000) -> None:
        """Step until nothing is left; every step must advance something."""
        while self.scheduler.has_work:
            assert self.num_steps < max_steps
            assert self.step(), "nothing could advance"

    @property
    def num_computed(self) -> int:
        return sum(request.metrics.num_computed_tokens for request in self.requests)


def counts(batch: Batch) -> dict[Planned, int]:
    """How many tokens of each sequence are computed."""
    return {chunk.sequence: len(chunk.tokens) for chunk in batch.chunks}


def planned(plan: dict[Planned, int]) -> dict[str, int]:
    """Tokens per request id."""
    return {sequence.request.request_id: num_tokens for sequence, num_tokens in plan.items()}


class TestBudget:
    def test_a_long_prompt_is_computed_in_chunks(self):
        loop = Loop(budget=10)
        loop.add(range(25))
        assert [planned(loop.step()) for _ in range(3)] == [{"0": 10}, {"0": 10}, {"0": 5}]

    def test_prompts_share_a_step(self):
        loop = Loop(budget=32)
        loop.add(range(10))
        loop.add(range(100, 120))
        loop.add(range(200, 220))
        assert planned(loop.step()) == {"0": 10, "1": 20, "2": 2}

    def test_a_long_prefill_does_not_hold_up_those_who_decode(self):
        loop = Loop(budget=8)
        loop.add([1], max_tokens=8)
        loop.step()
        loop.add(range(40))
        plans = [planned(loop.step()) for _ in range(5)]
        assert plans == [{"0": 1, "1": 7}] * 5

    def test_a_prefill_that_runs_longer_does_not_hold_up_decodes_either(self):
        loop = Loop(budget=8)
        samples = loop.add([1, 2], max_tokens=4, n=2).sequences
        prefill = loop.add(range(100, 140)).sequences[0]
        loop.step()
        # The second sample came after the long prompt.
        assert loop.scheduler.running == [samples[0], prefill, samples[1]]
        assert loop.step() == {samples[0]: 1, samples[1]: 1, prefill: 6}

    def test_seats_limit_how_many_run(self):
        loop = Loop(max_num_seqs=2)
        for token in range(3):
            loop.add([token], max_tokens=4)
        assert planned(loop.step()) == {"0": 1, "1": 1}


class TestOrder:
    def test_first_come_first_served(self):
        loop = Loop(max_num_seqs=1)
        requests = [loop.add([token], max_tokens=2) for token in range(4)]
        finished = []
        while loop.scheduler.has_work:
            loop.step()
            finished += [r for r in requests if r.is_finished and r not in finished]
        assert finished == requests

    def test_a_request_that_does_not_fit_is_not_overtaken_by_a_smaller_one(self):
        loop = Loop(num_pages=4)
        loop.add(range(4), max_tokens=8)
        loop.step()
        loop.add(range(100, 114))
        loop.add([9])
        assert planned(loop.step()) == {"0": 1}

    def test_those_who_run_keep_room_for_a_page_each(self):
        loop = Loop(num_pages=4)
        loop.add(range(4), max_tokens=8)
        loop.step()
        loop.add(range(100, 108))
        # Two pages are left, and the newcomer needs both.
        assert planned(loop.step()) == {"0": 1}


class TestSharing:
    def test_requests_with_a_common_prefix_compute_it_once(self):
        prefix, rest = list(range(2048)), 8
        loop = Loop(num_pages=200, page_tokens=32, max_num_seqs=16, budget=512)
        for number in range(16):
            loop.add([*prefix, *(10_000 * (number + 1) + i for i in range(rest))])
        loop.run()
        assert loop.num_computed == len(prefix) + 16 * rest

    def test_a_fully_cached_prompt_computes_one_token(self):
        loop = Loop()
        loop.add(range(30))
        loop.run()
        again = loop.add(range(30))
        assert planned(loop.step()) == {"1": 1}
        assert again.num_cached_tokens == 29

    def test_requests_that_share_nothing_do_not_wait_for_each_other(self):
        loop = Loop(budget=16)
        loop.add(range(8))
        loop.add(range(100, 108))
        assert planned(loop.step()) == {"0": 8, "1": 8}

    def test_one_that_waits_for_a_page_lets_others_pass_and_keeps_its_place(self):
        loop = Loop(budget=12, max_num_seqs=3)
        loop.add(range(16))
        loop.add(range(20))
        loop.add([100, 101])
        loop.add([200, 201])
        assert planned(loop.step()) == {"0": 12}
        # "1" waits for the page that "0" writes; "2" and "3" pass it and "1" comes next.
        assert planned(loop.step()) == {"0": 4, "2": 2, "3": 2}
        assert planned(loop.step()) == {"1": 4}

    def test_one_that_waits_for_a_page_stays_before_those_who_wait_for_a_seat(self):
        loop = Loop(budget=12, max_num_seqs=1)
        loop.add(range(16))
        loop.add(range(20))
        loop.add([100])
        loop.step()
        loop.step()
        assert [sequence.request.request_id for sequence in loop.scheduler.waiting] == ["1", "2"]

    def test_one_that_waits_for_a_cancelled_writer_starts_by_itself(self):
        loop = Loop(budget=12)
        writer = loop.add(range(16))
        loop.add(range(16))
        loop.step()
        loop.scheduler.remove(writer.sequences[0])
        assert planned(loop.step()) == {"1": 4}

    def test_with_sharing_off_every_prompt_is_computed(self):
        loop = Loop(share=False)
        for _ in range(3):
            loop.add(range(20))
        loop.run()
        assert loop.num_computed == 3 * 20


class TestSamples:
    def test_samples_compute_the_prompt_once(self):
        loop = Loop(max_num_seqs=4)
        loop.add(range(10), max_tokens=3, n=4)
        loop.run()
        assert loop.num_computed == 10 + 4 * 2

    def test_samples_still_to_come_keep_their_seats(self):
        loop = Loop(max_num_seqs=4, budget=8)
        loop.add(range(10), max_tokens=3, n=4)
        loop.add([100], max_tokens=3)
        assert planned(loop.step()) == {"0": 8}
        loop.step()
        assert [s.request.request_id for s in loop.scheduler.running] == ["0"] * 4

    def test_a_request_waits_until_all_its_samples_have_seats(self):
        loop = Loop(max_num_seqs=4)
        loop.add([1], max_tokens=2)
        loop.step()
        loop.add([2], max_tokens=2, n=4)
        assert planned(loop.step()) == {"0": 1}
        assert planned(loop.step()) == {"1": 1}


class TestPreemption:
    @pytest.fixture
    def crowded(self):
        """Two sequences of one page each that will need two, over three pages."""
        loop = Loop(num_pages=3)
        loop.add([1, 2], max_tokens=5)
        loop.add([3, 4], max_tokens=5)
        return loop

    def test_the_youngest_gives_way(self, crowded):
        for _ in range(4):
            plan = crowded.step()
        assert planned(plan) == {"0": 1}
        assert [sequence.request.request_id for sequence in crowded.scheduler.waiting] == ["1"]
        assert crowded.requests[1].metrics.num_preemptions == 1

    def test_all_finish_with_all_their_tokens(self, crowded):
        crowded.run()
        assert [request.sequences[0].num_output_tokens for request in crowded.requests] == [5, 5]

    def test_most_of_a_preempted_sequence_comes_back_from_the_cache(self):
        loop = Loop(num_pages=9, budget=64)
        loop.add(range(14), max_tokens=7)
        loop.add(range(100, 114), max_tokens=7)
        loop.run()
        preempted = loop.requests[1].metrics
        assert preempted.num_preemptions > 0
        without_preemption = 14 + 6
        assert preempted.num_computed_tokens <= without_preemption + preempted.num_preemptions * (PAGE_TOKENS + 1)

    def test_a_preempted_sequence_comes_before_new_ones(self, crowded):
        crowded.step()
        crowded.add([9] * 8)
        for _ in range(3):
            crowded.step()
        assert [sequence.request.request_id for sequence in crowded.scheduler.waiting] == ["1", "2"]

    def test_one_that_is_planned_already_can_still_give_way(self):
        loop = Loop(num_pages=5, budget=10)
        samples = loop.add(range(4), max_tokens=4, n=2).sequences
        prefill = loop.add(range(100, 112)).sequences[0]
        loop.step()
        # The samples take the last two pages; the long prompt, older than the second one, needs a third.
        assert loop.step() == {samples[0]: 1, prefill: 6}


class TestRemove:
    def test_a_running_sequence_can_be_removed_between_chunks(self):
        loop = Loop(budget=8)
        sequence = loop.add(range(30)).sequences[0]
        loop.step()
        loop.scheduler.remove(sequence)
        assert sequence.phase is Phase.FINISHED
        assert not loop.scheduler.has_work
        Inspector(loop.cache).check_integrity()

    def test_a_waiting_sequence_can_be_removed(self):
        loop = Loop(max_num_seqs=1)
        loop.add([1], max_tokens=9)
        waiting = loop.add([2]).sequences[0]
        loop.step()
        loop.scheduler.remove(waiting)
        assert planned(loop.step()) == {"0": 1}

    def test_what_was_computed_before_is_hittable(self):
        loop = Loop(budget=8)
        loop.scheduler.remove(loop.add(range(30)).sequences[0])
        first = loop.add(range(30)).sequences[0]
        loop.step()
        loop.scheduler.remove(first)
        loop.add(range(30))
        assert list(loop.step()) and loop.requests[-1].num_cached_tokens == 8

    def test_pages_in_doubt_are_not(self):
        loop = Loop(budget=8)
        first = loop.add(range(30)).sequences[0]
        loop.step()
        loop.scheduler.remove(first, keep_pages=False)
        loop.add(range(30))
        loop.step()
        assert loop.requests[-1].num_cached_tokens == 0


class TestLiveness:
    @pytest.mark.parametrize("num_tokens", [8, 7, 6, 5, 4])
    @pytest.mark.parametrize("sharing", [True, False])
    def test_a_request_as_large_as_the_pool_is_served_again_and_again(self, num_tokens, sharing):
        """With a last page that is full, partial or empty."""
        loop = Loop(num_pages=2, share=sharing)
        for _ in range(3):
            loop.add(range(num_tokens), max_tokens=9 - num_tokens)
            loop.run(max_steps=50)

    def test_two_requests_as_large_as_the_pool_take_turns(self):
        loop = Loop(num_pages=4)
        loop.add(range(3), max_tokens=13)
        loop.add(range(100, 103), max_tokens=13)
        loop.run(max_steps=100)

    def test_samples_of_which_only_one_fits_take_turns(self):
        loop = Loop(num_pages=4)
        loop.add(range(6), max_tokens=10, n=4)
        loop.run(max_steps=400)
        assert all(sequence.num_output_tokens == 10 for sequence in loop.requests[0].sequences)


@settings(max_examples=60)
@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 5),  # steps before it arrives
            st.integers(0, 3),  # which of four prefixes
            st.integers(1, 24),  # tokens of the prompt
            st.integers(1, 12),  # tokens to generate
            st.integers(1, 3),  # samples
        ),
        min_size=1,
        max_size=12,
    ),
    num_pages=st.integers(9, 40),
    budget=st.integers(3, 40),
    sharing=st.booleans(),
)
def test_every_request_finishes_whatever_arrives(arrivals, num_pages, budget, sharing):
    """The pool always holds the largest request alone: (24 + 12) / 4 pages."""
    loop = Loop(num_pages=num_pages, max_num_seqs=3, budget=budget, share=sharing)
    work = 0
    for delay, prefix, num_tokens, max_tokens, n in arrivals:
        for _ in range(delay):
            loop.step()
        loop.add(range(100 * prefix, 100 * prefix + num_tokens), max_tokens, n)
        work += num_tokens + n * max_tokens
    # One token a step would do it all; half as much again is for what preemption computes twice.
    loop.run(max_steps=loop.num_steps + work + work // 2)
    for request in loop.requests:
        assert [sequence.num_output_tokens for sequence in request.sequences] == [
            request.params.max_tokens
        ] * request.params.n
    loop.cache.reset()
    assert Inspector(loop.cache).stats().groups[0].free == num_pages


SHARES = {"half": TenantShare(page_quota=0.5, lease_budget=0.25), "quarter": TenantShare(lease_budget=0.25)}


@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 5),  # steps before it arrives
            st.sampled_from(["", "half", "quarter"]),
            st.integers(0, 1),  # which of two prefixes
            st.integers(1, 20),  # tokens of the prompt
            st.integers(1, 12),  # tokens to generate
            st.integers(1, 2),  # samples
            st.integers(0, 20),  # a breakpoint, if it is in the prompt
        ),
        min_size=1,
        max_size=12,
    ),
    num_pages=st.integers(32, 60),
    budget=st.integers(3, 40),
    has_shares=st.booleans(),
)
def test_every_request_of_every_tenant_finishes(arrivals, num_pages, budget, has_shares):
    """A quarter of the pool, (20 + 12) / 4 pages, holds the largest request alone: so much no tenant can be denied."""
    loop = Loop(num_pages=num_pages, max_num_seqs=3, budget=budget, tenants=SHARES if has_shares else {})
    work = 0
    for delay, tenant, prefix, num_tokens, max_tokens, n, cut in arrivals:
        for _ in range(delay):
            loop.step()
        breakpoints = (Breakpoint(cut, 1e9),) if 0 < cut <= num_tokens else ()
        loop.add(range(100 * prefix, 100 * prefix + num_tokens), max_tokens, n, tenant, breakpoints)
        work += num_tokens + n * max_tokens
    loop.run(max_steps=loop.num_steps + work + work // 2)
    for request in loop.requests:
        assert [each.num_output_tokens for each in request.sequences] == [request.params.max_tokens] * request.params.n


def seats(loop: Loop) -> dict[str, int]:
    """How many sequences of each tenant run."""
    return dict(Counter(sequence.request.tenant for sequence in loop.scheduler.running))


class TestFairness:
    def test_seats_that_nobody_else_wants_can_be_had(self):
        loop = Loop(max_num_seqs=4)
        loop.add([1], max_tokens=9, n=4, tenant="a")
        loop.step()
        assert seats(loop) == {"a": 4}

    def test_a_tenant_with_all_seats_gives_way_up_to_its_share(self):
        loop = Loop(max_num_seqs=4)
        loop.add([1], max_tokens=99, n=4, tenant="a")
        loop.step()
        for token in range(3):
            loop.add([100 + token], max_tokens=99, tenant="b")
        loop.step()
        assert seats(loop) == {"a": 2, "b": 2}
        assert len(loop.scheduler.waiting) == 3

    def test_shares_of_seats_go_by_weight(self):
        loop = Loop(max_num_seqs=4, weights={"b": 3.0})
        loop.add([1], max_tokens=99, n=4, tenant="a")
        loop.step()
        for token in range(9):
            loop.add([100 + token], max_tokens=99, tenant="b")
        loop.step()
        assert seats(loop) == {"a": 1, "b": 3}

    def test_samples_beyond_a_share_wait_for_seats(self):
        loop = Loop(max_num_seqs=4)
        loop.add([1], max_tokens=20, n=3, tenant="a")
        loop.step()
        several = loop.add([2], max_tokens=3, n=4, tenant="b")
        loop.step()
        assert seats(loop) == {"a": 2, "b": 2}
        loop.run()
        assert [each.num_output_tokens for each in several.sequences] == [3] * 4

    def test_a_tenant_that_holds_all_pages_gives_way_to_one_that_holds_few(self):
        loop = Loop(num_pages=16, tenants={"a": TenantShare(), "b": TenantShare()})
        hogs = [loop.add(range(100 * each, 100 * each + 12), max_tokens=40, tenant="a") for each in range(4)]
        for _ in range(3):
            loop.step()
        few = loop.add(range(1000, 1010), max_tokens=4, tenant="b")
        assert planned(loop.step())["4"] == 10
        for _ in range(3):
            loop.step()
        assert few.is_finished
        loop.run()
        assert [each.sequences[0].num_output_tokens for each in hogs] == [40] * 4

    def test_within_its_own_quota_a_tenant_gives_way_to_nobody(self):
        loop = Loop(num_pages=16, tenants={"a": TenantShare(0.75), "b": TenantShare()})
        loop.add(range(40), max_tokens=8, tenant="a")
        loop.step()
        loop.step()
        loop.add(range(1000, 1020), max_tokens=4, tenant="b")
        assert planned(loop.step()) == {"0": 1}

    def test_what_lacks_a_seat_holds_up_its_own_tenant_alone(self):
        loop = Loop(max_num_seqs=4)
        loop.add([1], max_tokens=9, n=2, tenant="a")
        loop.step()
        loop.add([2], max_tokens=9, n=4, tenant="a")
        loop.add([3], max_tokens=9, tenant="b")
        loop.step()
        assert seats(loop) == {"a": 2, "b": 1}

    def test_who_runs_nothing_comes_first_of_those_served_alike(self):
        loop = Loop(num_pages=16, max_num_seqs=2)
        loop.add(range(4), max_tokens=20, tenant="a")
        loop.step()
        loop.add(range(100, 104), tenant="a")
        loop.add(range(200, 204), tenant="b")
        assert planned(loop.step()) == {"0": 1, "2": 4}

    def test_tokens_are_shared_by_weight(self):
        loop = Loop(num_pages=2000, budget=32, max_num_seqs=2, weights={"a": 3.0})
        for tenant in "ab":
            for number in range(20):
                loop.add(range(1000 * number, 1000 * number + 120), tenant=tenant)
        served = Counter()
        for _ in range(60):
            for sequence, num_tokens in loop.step().items():
                served[sequence.request.tenant] += num_tokens
        assert 2 < served["a"] / served["b"] < 4

    def test_time_without_requests_is_no_credit(self):
        loop = Loop(num_pages=2000, budget=32)
        loop.add(range(640), tenant="a")
        loop.run()
        loop.add(range(1000, 1640), tenant="a")
        loop.add(range(2000, 2640), tenant="b")
        served = Counter()
        for _ in range(20):
            for sequence, num_tokens in loop.step().items():
                served[sequence.request.tenant] += num_tokens
        assert 0.5 < served["a"] / served["b"] < 2


def by_tenant(plan: dict[Planned, int]) -> dict[str, list[int]]:
    """How many tokens are planned for the sequences of each tenant."""
    found: dict[str, list[int]] = {}
    for sequence, num_tokens in plan.items():
        found.setdefault(sequence.request.tenant, []).append(num_tokens)
    return found


class TestDivision:
    """How steps are divided while several tenants are present."""

    @staticmethod
    def loop(num_decoding: int = 0, **options) -> Loop:
        """`b` has been here, and `a` decodes."""
        loop = Loop(num_pages=20_000, page_tokens=16, max_num_seqs=256, budget=2048, **options)
        for number in range(num_decoding):
            loop.add([number], max_tokens=2000, tenant="a")
        if num_decoding:
            loop.step()
        return loop

    @staticmethod
    def b_comes(loop: Loop) -> None:
        loop.add([7777], tenant="b")
        while loop.requests[-1].sequences[0].phase is not Phase.FINISHED:
            loop.step()

    def test_a_tenant_alone_has_whole_steps(self):
        loop = self.loop(100)
        loop.add(range(10_000, 14_000), tenant="a")
        assert by_tenant(loop.step()) == {"a": [1] * 100 + [1948]}

    def test_while_another_may_ask_decodes_go_on_by_turns(self):
        loop = self.loop(100)
        self.b_comes(loop)
        before = Counter({sequence: sequence.num_output_tokens for sequence in loop.scheduler.running})
        plans = [loop.step() for _ in range(100)]
        assert {len(plan) for plan in plans} == {SLICE_TOKENS // DECODE_TOKENS}
        gained = {sequence.num_output_tokens - before[sequence] for sequence in loop.scheduler.running}
        assert gained == {24}, "a hundred steps of 24, for a hundred sequences"

    def test_while_another_may_ask_prompts_come_in_small_chunks(self):
        loop = self.loop()
        self.b_comes(loop)
        loop.add(range(10_000, 10_400), max_tokens=5, tenant="a")
        assert [by_tenant(loop.step())["a"] for _ in range(6)] == [[144], [144], [48], [48], [16], [1]], (
            "first as newcomer"
        )

    def test_prompts_and_decodes_of_one_share_a_slice(self):
        loop = self.loop(100)
        self.b_comes(loop)
        loop.add(range(10_000, 10_100), tenant="a")
        assert by_tenant(loop.step()) == {"a": [1] * 12 + [24]}

    def test_a_tenant_that_sends_nothing_for_long_has_left(self):
        loop = self.loop(1)
        self.b_comes(loop)
        loop.add(range(100_000, 100_000 + PRESENT_TOKENS), tenant="a")
        assert by_tenant(loop.step()) == {"a": [1, 46]}
        sizes = []
        while len(plan := loop.step()) > 1:
            sizes.append(max(plan.values()))
        assert {*sizes[:100]} == {46}
        assert max(sizes) == 2047

    def test_a_newcomer_has_the_turn_beside_few_others(self):
        loop = self.loop(100)
        loop.add(range(10_000, 14_000), tenant="a")
        loop.step()
        loop.add(range(20_000, 20_200), max_tokens=9, tenant="b")
        assert by_tenant(loop.step()) == {"a": [1] * 6, "b": [144]}
        assert by_tenant(loop.step()) == {"a": [1] * 6, "b": [56]}
        assert by_tenant(loop.step()) == {"a": [1] * 11 + [24], "b": [1]}

    def test_a_long_prompt_of_one_served_less_is_computed_in_large_chunks(self):
        loop = self.loop(100)
        loop.add(range(10_000, 19_000), tenant="a")
        for _ in range(3):
            loop.step()
        loop.add(range(20_000, 22_000), tenant="b")
        plans = []
        while loop.requests[-1].sequences[0].phase is not Phase.FINISHED:
            plans.append(by_tenant(loop.step()))
        most = TURN_SLICES * SLICE_TOKENS
        assert [plan["b"] for plan in plans if "b" in plan] == [[most]] * (2000 // most) + [[2000 % most]]
        assert len(plans) < 45

    def test_whoever_has_been_served_far_more_has_no_turn(self):
        loop = self.loop(100)
        for number in range(60):
            loop.add(range(1000 * number, 1000 * number + 140), tenant="b")
            plan = loop.step()
            if by_tenant(plan)["b"] != [140]:
                break
        assert 2 < number < 20
        assert by_tenant(plan) == {"a": [1] * 12, "b": [24]}

    def test_who_comes_next_does_not_take_the_turn_from_a_newcomer(self):
        loop = self.loop()
        self.b_comes(loop)
        loop.add(range(20_000, 20_200), tenant="a")
        assert by_tenant(loop.step()) == {"a": [144]}
        loop.add([5, 6], tenant="b")
        assert by_tenant(loop.step()) == {"a": [56], "b": [2]}

    def test_a_prompt_beside_few_decodes_needs_no_turn(self):
        loop = self.loop()
        loop.add([1], max_tokens=3000, tenant="a")
        for number in range(5):
            loop.add(range(1000 * number, 1000 * number + 230), tenant="a")
            loop.step()
        loop.add(range(10_000, 14_000), tenant="b")
        assert [by_tenant(loop.step()) for _ in range(2)] == [{"a": [1], "b": [144]}] * 2, "as a newcomer"
        assert [by_tenant(loop.step()) for _ in range(20)] == [{"a": [1], "b": [46]}] * 20

    def test_who_is_behind_one_that_decodes_little_needs_no_turn(self):
        loop = self.loop()
        loop.add(range(10_000, 19_000), tenant="a")
        loop.step()
        served = loop.scheduler.waiting._served
        number = 0
        while served["b"] < served["a"] + 400:
            loop.add(range(1000 * number, 1000 * number + 140), tenant="b")
            loop.step()
            number += 1
        loop.add([1], max_tokens=9, tenant="b")
        loop.step()
        assert by_tenant(loop.step()) == {"a": [46], "b": [1]}

    def test_nothing_is_owed_to_who_wants_little(self):
        loop = self.loop(4)
        for number in range(60):
            loop.add(range(1000 * number, 1000 * number + 140), tenant="b")
            assert by_tenant(loop.step()) == {"a": [1] * 4, "b": [140]}

    def test_samples_of_tenants_draw_by_weight(self):
        loop = self.loop(100, weights={"b": 3.0})
        for number in range(100):
            loop.add([1000 + number], max_tokens=2000, tenant="b")
        while loop.scheduler.waiting:
            loop.step()
        drawn = [{tenant: len(tokens) for tenant, tokens in by_tenant(loop.step()).items()} for _ in range(5)]
        assert drawn == [{"a": 6, "b": 18}] * 5

    def test_a_turn_that_comes_to_nothing_slows_nobody(self):
        """`b` waits for pages that `a` may keep."""
        tenants = {"a": TenantShare(0.75), "b": TenantShare()}
        loop = Loop(num_pages=160, page_tokens=4, max_num_seqs=256, budget=256, tenants=tenants)
        for number in range(40):
            loop.add([number, *range(9)], max_tokens=2, tenant="a")
        loop.step()
        loop.step()
        for number in range(40):
            loop.add([number, *range(9)], max_tokens=30, tenant="a")
        loop.step()
        loop.add(range(20_000, 20_400), tenant="b")
        sizes = [len(loop.step()) for _ in range(5)]
        assert max(sizes[1:]) > 8, sizes

    @settings(max_examples=30)
    @given(
        requests=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.integers(1, 12), st.integers(0, 3)))
    )
    def test_everybody_ends(self, requests):
        """Slices far smaller than what is asked for: every request of every tenant goes on."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(division, "SLICE_TOKENS", 8)
            loop = Loop(num_pages=64, max_num_seqs=16, budget=32)
            for number, (tenant, num_tokens, max_tokens, delay) in enumerate(requests):
                for _ in range(delay):
                    loop.step()
                loop.add(range(100 * number, 100 * number + num_tokens), max_tokens, tenant=tenant)
            loop.run()
        assert all(request.sequences[0].num_output_tokens == request.params.max_tokens for request in loop.requests)


class TestFailures:
    """What raises for one sequence is noted; the others are planned."""

    @staticmethod
    def failing_for(loop: Loop, monkeypatch, name: str, request: Request) -> None:
        """Let a call into the cache raise once, when it is about `request`, whose first token nobody else's has."""
        original = getattr(loop.cache, name)

        def call(*arguments, **options):
            cached = request.sequences[0].cached
            mine = any(each is cached or each == request.sequences[0].tokens for each in arguments if each is not None)
            if mine:
                monkeypatch.setattr(loop.cache, name, original)
                raise MemoryError
            return original(*arguments, **options)

        monkeypatch.setattr(loop.cache, name, call)

    @pytest.mark.parametrize("name", ["match", "reserve", "written_key"])
    def test_others_are_planned(self, monkeypatch, name):
        loop = Loop(budget=8)
        first = loop.add(range(12), max_tokens=4)
        if name != "match":
            loop.step()
        loop.add(range(100, 104), max_tokens=4)
        self.failing_for(loop, monkeypatch, name, first)
        plan = counts(loop.scheduler.schedule())
        assert list(loop.scheduler.failed) == first.sequences
        assert set(planned(plan)) == {"1"}
        loop.scheduler.remove(first.sequences[0], keep_pages=False)
        Inspector(loop.cache).check_integrity()

    def test_a_release_that_raises_is_tried_again(self, monkeypatch):
        loop = Loop()
        first = loop.add(range(12), max_tokens=4)
        loop.step()
        monkeypatch.setattr(loop.cache, "release", lambda *_: 1 // 0)
        loop.scheduler.remove(first.sequences[0])
        monkeypatch.undo()
        assert Inspector(loop.cache).stats().groups[0].in_use
        loop.add([100])
        loop.run()
        assert not Inspector(loop.cache).stats().groups[0].in_use


class TestTenants:
    def test_a_tenant_within_its_share_starts_while_another_waits(self):
        loop = Loop(num_pages=16, tenants={"b": TenantShare(0.5)})
        loop.add(range(24), max_tokens=8)
        loop.step()
        waiting = loop.add(range(100, 124), max_tokens=8)
        loop.add(range(200, 216), max_tokens=8, tenant="b")
        assert planned(loop.step()) == {"0": 1, "2": 16}
        assert loop.scheduler.waiting[0].request is waiting

    def test_nobody_takes_what_one_that_waits_could_have(self):
        loop = Loop(num_pages=16, tenants={"b": TenantShare(0.25)})
        loop.add(range(28), max_tokens=8)
        loop.add(range(400, 404), max_tokens=8, tenant="b")
        loop.step()
        loop.add(range(100, 124))
        loop.add(range(200, 224), tenant="b")  # six pages, of which four are its own
        loop.add(range(300, 308), tenant="b")
        assert planned(loop.step()) == {"0": 1, "1": 1}
        loop.run()

    def test_it_is_not_preempted_for_another(self):
        loop = Loop(num_pages=16, tenants={"b": TenantShare(0.5)})
        loop.add(range(12), max_tokens=20)
        loop.add(range(100, 112), max_tokens=20)
        loop.step()
        within = loop.add(range(200, 212), max_tokens=20, tenant="b")
        loop.run()
        assert within.metrics.num_preemptions == 0
        assert sum(request.metrics.num_preemptions for request in loop.requests) > 0

    def test_beyond_its_share_it_is(self):
        """Four pages are nobody's: the first request needs all of them, of which the second takes one on its way."""
        loop = Loop(num_pages=16, tenants={"a": TenantShare(0.5), "b": TenantShare(0.25)})
        first = loop.add(range(8), max_tokens=8)
        loop.step()
        beyond = loop.add(range(200, 216), max_tokens=8, tenant="b")
        loop.run()
        assert first.metrics.num_preemptions == 0
        assert beyond.metrics.num_preemptions > 0

    def test_leases_of_its_own_give_way_to_a_long_request(self):
        loop = Loop(num_pages=16)
        loop.add(range(32), breakpoints=(Breakpoint(16, 100.0), Breakpoint(32, 10.0)))
        loop.run()
        assert Inspector(loop.cache).stats().num_leases == 2
        long = loop.add(range(100, 140), max_tokens=2)
        loop.run()
        assert long.metrics.num_preemptions == 0
        # The lease that expires first is in the way of the 42 tokens; the other is not.
        assert (
            Inspector(loop.cache).stats().revoked_leases,
            [each.num_tokens for each in Inspector(loop.cache).leases()],
        ) == (1, [16])

    def test_a_lease_of_what_it_goes_on_from_gives_way_last(self):
        loop = Loop(num_pages=16)
        loop.add(range(16), breakpoints=(Breakpoint(16, 10.0),))
        loop.add(range(100, 116), breakpoints=(Breakpoint(16, 100.0),))
        loop.run()
        long = loop.add([*range(16), *range(200, 236)], max_tokens=2)
        loop.run()
        assert long.num_cached_tokens == 16
        left = [(each.num_tokens, each.ttl_seconds) for each in Inspector(loop.cache).leases()]
        assert (Inspector(loop.cache).stats().revoked_leases, left) == (1, [(16, 10.0)])

    def test_leases_stay_while_another_sequence_will_end(self):
        loop = Loop(num_pages=16)
        loop.add(range(16), breakpoints=(Breakpoint(16, 10.0),))
        loop.run()
        loop.add(range(100, 124), max_tokens=8)
        loop.step()
        waiting = loop.add(range(200, 224), max_tokens=2)
        loop.run()
        assert waiting.sequences[0].num_output_tokens == 2
        assert Inspector(loop.cache).stats().revoked_leases == 0

    def test_leases_give_way_to_a_sequence_that_grows(self):
        loop = Loop(num_pages=16)
        loop.add(range(32), breakpoints=(Breakpoint(32, 10.0),))
        loop.run()
        growing = loop.add(range(100, 116), max_tokens=40)
        loop.run()
        assert growing.sequences[0].num_output_tokens == 40
        assert growing.metrics.num_preemptions == 0
        assert Inspector(loop.cache).stats().revoked_leases == 1

    def test_leases_end_on_time(self):
        loop = Loop(num_pages=16)
        loop.add(range(32), breakpoints=(Breakpoint(32, 10.0),))
        loop.run()
        loop.now = 10.0
        loop.add(range(100, 160))
        loop.run()
        assert (Inspector(loop.cache).stats().revoked_leases, Inspector(loop.cache).stats().num_leases) == (0, 0)
