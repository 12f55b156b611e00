"""Where the time of requests went: what a step is divided into, and that every second of a request has its place."""

from __future__ import annotations

from array import array

import pytest

from pagoda import LLM, SamplingParams, StructuredOutputs
from pagoda.engine.accounting import StepTimes, charge_step
from pagoda.engine.batch import Batch, Chunk
from pagoda.engine.request import Request, RequestMetrics, Sequence, new_sample
from pagoda.outputs import RequestOutput

PROMPT = list(range(1, 101))


def scheduled(arrival: float, first_scheduled: float, name: str = "a") -> Sequence:
    request = Request(name, PROMPT, SamplingParams(), RequestMetrics(arrival))
    request.metrics.first_scheduled = request.metrics.known_until = first_scheduled
    request.metrics.phases.queue = first_scheduled - arrival
    return new_sample(request, 0)


def chunk(sequence: Sequence, start: int, num_tokens: int, draws: bool) -> Chunk:
    drawn = range(num_tokens - 1, num_tokens) if draws else range(0)
    return Chunk(sequence, start, array("q", [1] * num_tokens), range(0), drawn)


def step(at: float, *chunks: Chunk) -> None:
    """A step of ten seconds: one to plan, eight to compute, one to settle."""
    charge_step(Batch(chunks), StepTimes(at, at + 1, at + 9, at + 10))


def test_the_forward_pass_is_divided_by_rows_and_a_step_counts_whole_on_the_wall() -> None:
    reading, writing = scheduled(0, 1), scheduled(0, 1)
    step(0, chunk(writing, 100, 1, draws=True), chunk(reading, 0, 15, draws=False))
    assert reading.request.metrics.phases.prefill == pytest.approx(8 * 15 / 16)
    assert writing.request.metrics.phases.decode == pytest.approx(8 * 1 / 16)
    assert reading.request.metrics.phases.decode == writing.request.metrics.phases.prefill == 0
    assert reading.request.metrics.wall(10).prefill == 9  # its first step counts from when it was planned
    assert writing.request.metrics.wall(10).decode == 9


def test_the_last_row_of_a_prompt_is_prefill_and_later_ones_decode() -> None:
    sequence = scheduled(0, 1)
    phases = sequence.request.metrics.phases
    step(0, chunk(sequence, 99, 1, draws=True))
    assert (phases.prefill, phases.decode) == (8, 0)
    step(10, chunk(sequence, 100, 1, draws=True))
    assert (phases.prefill, phases.decode) == (8, 8)


def test_what_is_computed_again_is_prefill_and_counted() -> None:
    sequence = scheduled(0, 1)
    metrics = sequence.request.metrics
    step(0, chunk(sequence, 0, 100, draws=True))
    for number in range(3):
        step(10 + 10 * number, chunk(sequence, 100 + number, 1, draws=True))
    assert metrics.num_recomputed_tokens == 0
    step(60, chunk(sequence, 64, 40, draws=True))  # sent back after 103 tokens; 64 were found again
    assert metrics.num_recomputed_tokens == 103 - 64
    assert metrics.phases.prefill == pytest.approx(8 + 8 * 39 / 40)
    wall = metrics.wall(70)
    assert (wall.queue, wall.prefill, wall.decode, wall.waiting) == (1, 9 + 10, 30, 20)


def test_samples_of_one_request_have_a_step_once() -> None:
    first = scheduled(0, 1)
    second = new_sample(first.request, 1)
    step(10, chunk(first, 100, 1, draws=True), chunk(second, 100, 1, draws=True))
    wall = first.request.metrics.wall(20)
    assert (wall.decode, wall.waiting) == (10, 9)
    assert first.request.metrics.phases.decode == pytest.approx(8)


def test_a_step_counts_until_the_request_ended() -> None:
    sequence = scheduled(0, 1)
    sequence.request.metrics.ended = 16.0
    step(10, chunk(sequence, 100, 1, draws=True))
    wall = sequence.request.metrics.wall(99)
    assert (wall.queue, wall.decode, wall.waiting, wall.total) == (1, 6, 9, 16)


def test_what_was_never_scheduled_has_only_waited() -> None:
    wall = RequestMetrics(arrival=5).wall(8)
    assert (wall.queue, wall.total) == (3, 3)


def test_the_weights_are_shared_by_all_rows_of_a_step() -> None:
    first, second = scheduled(0, 1), scheduled(0, 1)
    assert first.request.metrics.mean_batch_rows == 1
    step(0, chunk(first, 100, 1, draws=True))
    assert first.request.metrics.mixed_step_seconds == 0
    step(10, chunk(first, 101, 1, draws=True), chunk(second, 0, 4, draws=False))
    assert first.request.metrics.mixed_step_seconds == 10
    # All of the weights in one step and a fifth in the other: 0.6 of them on average, as in a batch of 1 / 0.6.
    assert first.request.metrics.mean_batch_rows == pytest.approx(1 / 0.6)


def check_wall(output: RequestOutput) -> None:
    metrics = output.metrics
    wall = metrics.wall()
    assert metrics.e2e_seconds is not None
    assert wall.total == pytest.approx(metrics.e2e_seconds, rel=1e-9)
    assert min(wall.queue, wall.prefill, wall.decode) > 0
    assert wall.waiting >= 0
    assert wall.queue == metrics.phases.queue == metrics.queue_seconds
    # Its part of the steps that it was in; the last of them ends with its token.
    assert metrics.phases.prefill <= wall.prefill
    assert metrics.phases.decode <= wall.decode


@pytest.mark.usefixtures("one_thread")
def test_every_second_of_a_request_has_its_place() -> None:
    prompts = [[number, *range(2, 200)] for number in range(3, 9)]
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=20, ignore_eos=True, n=2)
    with LLM(max_num_seqs=4, kv_cache_memory_bytes=8 << 20) as llm:
        outputs = llm.generate(prompts, params)
    for output in outputs:
        check_wall(output)
        phases = output.metrics.phases
        assert min(phases.match, phases.prefill, phases.decode, phases.sampling, phases.detokenise) > 0
        assert phases.promotion == phases.structured == 0
    assert all(output.metrics.arrival <= output.metrics.added <= output.metrics.first_scheduled for output in outputs)
    assert [output.metrics.num_ahead for output in outputs] == [0, 1, 2, 3, 4, 5]
    # Of each step all parts together are no more than the step.
    times = [output.metrics for output in outputs]
    work = sum(each.phases.prefill + each.phases.decode + each.phases.sampling for each in times)
    assert work < max(each.ended for each in times) - min(each.arrival for each in times)


@pytest.mark.usefixtures("one_thread")
def test_what_was_sent_back_says_how_much_was_computed_again() -> None:
    params = SamplingParams(temperature=0, max_tokens=90, ignore_eos=True)
    prompts = [[number, *range(2, 21)] for number in range(3, 11)]
    with LLM(kv_cache_memory_bytes=1 << 20, block_size=16) as llm:
        outputs = llm.generate(prompts, params)
        assert sum(output.metrics.num_recomputed_tokens for output in outputs) > 0
    for output in outputs:
        check_wall(output)
        metrics = output.metrics
        once = len(output.prompt_token_ids) - output.num_cached_tokens + len(output.outputs[0].token_ids) - 1
        assert metrics.num_recomputed_tokens == metrics.num_computed_tokens - once
        assert not metrics.num_recomputed_tokens or metrics.num_preemptions


def test_a_request_that_only_computes_its_prompt_ends_when_that_is_done() -> None:
    with LLM(kv_cache_memory_bytes=8 << 20) as llm:
        metrics = llm.generate([PROMPT], SamplingParams(max_tokens=0))[0].metrics
    assert metrics.e2e_seconds is None
    assert metrics.wall().total == pytest.approx(metrics.ended - metrics.arrival)
    assert metrics.wall().prefill > 0
    assert metrics.phases.decode == 0


def test_waiting_for_a_structured_output_is_no_sampling() -> None:
    params = SamplingParams(temperature=0, max_tokens=30, structured_outputs=StructuredOutputs(regex="(a|b){12}"))
    with LLM(kv_cache_memory_bytes=8 << 20) as llm:
        metrics = llm.generate([PROMPT], params)[0].metrics
    assert metrics.wall().total == pytest.approx(metrics.ended - metrics.arrival)
    assert 0 <= metrics.phases.structured <= metrics.wall().waiting + metrics.wall().decode + metrics.wall().prefill
