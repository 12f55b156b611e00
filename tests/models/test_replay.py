"""Replayed decode steps give the logits of the model's own forward, and what cannot be replayed is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pagoda.kernels.base import AttentionRule, GroupView
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.recording import StepRecorder
from pagoda.kernels.reference import ReferenceKernels
from pagoda.models.attention import PagedStep
from pagoda.models.replay import DecodeSteps

WIDTH = 32


def step(kernels: Any) -> PagedStep:
    numbers = torch.zeros(2, dtype=torch.int32)
    return PagedStep(kernels, (), (GroupView(numbers, numbers, numbers, numbers[1:]),))


class Network:
    """A forward over token ids [rows] that counts how often it was called; attends to nothing."""

    def __init__(self, compute: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
        self.calls = 0
        self._compute = compute

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        logit_rows: torch.Tensor,
        step: PagedStep,
    ) -> torch.Tensor:
        self.calls += 1
        return self._compute(token_ids, self.calls)


def run(
    compute: Callable[[torch.Tensor, int], torch.Tensor], num_steps: int = 6, rows: int = 3
) -> tuple[Network, DecodeSteps]:
    """Steps on different tokens, each of which must equal a plain run of `compute`."""
    network, kernels = Network(compute), NativeKernels()
    steps = DecodeSteps(network, kernels)
    for seed in range(num_steps):
        inputs = [torch.randint(100, (rows,), generator=torch.Generator().manual_seed(seed)) for _ in range(3)]
        with torch.inference_mode():
            expected = compute(inputs[0], network.calls + 1)
        assert torch.equal(steps.forward(*inputs, step(kernels)), expected)
    return network, steps


TABLE = torch.randn(100, WIDTH, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))


def plain(tokens: torch.Tensor, _: int) -> torch.Tensor:
    """Views, constants that are made anew each time, operations without a variant that writes into a result."""
    hidden = torch.nn.functional.embedding(tokens, TABLE)
    halves = hidden.view(len(tokens), 2, -1).transpose(0, 1)
    angles = torch.arange(WIDTH // 2, dtype=torch.float32).cos()
    first, second = torch.stack([halves[0] * angles, halves[1]]).unbind()
    return torch.cat([first, second], dim=-1) @ WEIGHT


def in_place(tokens: torch.Tensor, _: int) -> torch.Tensor:
    """What is written to was a constant."""
    total = torch.zeros(100, WIDTH)
    total.index_add_(0, tokens, TABLE[tokens])
    return total[tokens] + total.sum()


@pytest.mark.parametrize("compute", [plain, in_place])
def test_steps_are_replayed_from_the_fourth_on(compute):
    network, steps = run(compute)
    assert steps.are_repeatable
    assert network.calls == 3  # run, recorded, proved


def looks_at_numbers(tokens: torch.Tensor, _: int) -> torch.Tensor:
    return TABLE[tokens] * (2 if int(tokens[0]) % 2 else 3)


def looks_past_the_dispatcher(tokens: torch.Tensor, _: int) -> torch.Tensor:
    return TABLE[tokens] * sum(tokens.tolist())


def looks_through_numpy(tokens: torch.Tensor, _: int) -> torch.Tensor:
    return TABLE[tokens] * float(tokens.numpy().sum())


def picks_by_a_mask(tokens: torch.Tensor, _: int) -> torch.Tensor:
    return TABLE[tokens] + TABLE[tokens[tokens > 50]].sum()


def counts_its_calls(tokens: torch.Tensor, calls: int) -> torch.Tensor:
    return TABLE[tokens] * calls


@pytest.mark.parametrize(
    "compute", [looks_at_numbers, looks_past_the_dispatcher, looks_through_numpy, picks_by_a_mask, counts_its_calls]
)
def test_what_numbers_or_state_decide_is_not_replayed(compute):
    network, steps = run(compute)
    assert not steps.are_repeatable
    assert network.calls >= 6


def test_random_numbers_are_not_replayed():
    network, kernels = Network(lambda tokens, _: TABLE[tokens] * torch.rand(1)), NativeKernels()
    steps = DecodeSteps(network, kernels)
    rows = torch.arange(2)
    seen = {float(steps.forward(rows, rows, rows, step(kernels))[0, 0]) for _ in range(5)}
    assert len(seen) == 5


def test_errors_of_the_forward_are_its_own():
    def compute(tokens: torch.Tensor, calls: int) -> torch.Tensor:
        if calls > 1:
            raise ValueError("broken")
        return TABLE[tokens]

    with pytest.raises(ValueError, match="broken"):
        run(compute)


def test_other_kernels_run_the_forward():
    network, kernels = Network(plain), ReferenceKernels()
    steps = DecodeSteps(network, kernels)
    rows = torch.arange(2)
    for _ in range(5):
        steps.forward(rows, rows, rows, step(kernels))
    assert network.calls == 5


def test_what_is_recorded_has_been_run_often(monkeypatch):
    monkeypatch.setattr(StepRecorder, "runs_before", 4)
    network, steps = run(plain, num_steps=9)
    assert network.calls == 6
    monkeypatch.setattr(StepRecorder, "most_nbytes", 0)
    network, steps = run(plain, num_steps=15)
    assert network.calls == 15
    assert not steps._recordings


def test_steps_of_other_sizes_are_recorded_apart(monkeypatch):
    network, kernels = Network(plain), NativeKernels()
    steps = DecodeSteps(network, kernels)
    for size in [1, 2, 3] * 5:
        rows = torch.arange(size)
        with torch.inference_mode():
            assert torch.equal(steps.forward(rows, rows, rows, step(kernels)), plain(rows, 0))
    assert network.calls == 9
    monkeypatch.setattr(StepRecorder, "most_nbytes", 0)
    for _ in range(4):
        rows = torch.arange(4)
        steps.forward(rows, rows, rows, step(kernels))
    assert not steps._recordings


# Queries that are to be seen


class Watch:
    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def saw(self, call: int, rule: AttentionRule, query: torch.Tensor, sinks: torch.Tensor | None) -> None:
        self.seen.append([call, *query.flatten().tolist()])


def watched_steps(overwrites: bool) -> tuple[Network, list[list[list[float]]]]:
    """What a watch sees of six steps that attend twice, with the tokens as queries."""

    class Attends(Network):
        def forward(self, token_ids: Any, positions: Any, logit_rows: Any, step: PagedStep) -> torch.Tensor:
            self.calls += 1
            hidden = token_ids.float()
            for call in range(2):
                hidden = hidden * 2
                if step.watch is not None:
                    step.watch.saw(call, AttentionRule(1.0), hidden, None)
                if overwrites:
                    hidden += 1
            return hidden * 3

    network, kernels, seen = Attends(plain), NativeKernels(), []
    steps = DecodeSteps(network, kernels)
    for token in range(6):
        current, watch = step(kernels), Watch()
        current.watch = watch if token != 4 else None
        rows = torch.tensor([token])
        steps.forward(rows, rows, rows, current)
        seen.append(watch.seen)
    return network, seen


def test_a_watch_sees_the_queries_of_replayed_steps():
    network, seen = watched_steps(overwrites=False)
    assert network.calls == 4  # run, recorded, run for its queries, proved
    assert seen == [[[0, 2.0 * token], [1, 4.0 * token]] if token != 4 else [] for token in range(6)]


def test_steps_whose_queries_are_overwritten_are_not_replayed():
    network, seen = watched_steps(overwrites=True)
    assert network.calls == 7
    assert seen == [[[0, 2.0 * token], [1, 4.0 * token + 2]] if token != 4 else [] for token in range(6)]
