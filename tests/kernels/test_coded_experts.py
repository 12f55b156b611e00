"""Products with the coded matrices of experts: those of each matrix by itself, to the bit; no others are read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.test_coded import coded, grouped, numbers
from pagoda.errors import ConfigError
from pagoda.kernels.coded_stack import CodedStack
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import instruction_sets
from pagoda.kernels.reference import ReferenceKernels

DEPTH = 256
COUNT = 6
COLUMNS = 40


@pytest.fixture(params=instruction_sets())
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return NativeKernels(isa=request.param)


def matrices(bits: int = 4) -> list[CodedWeight]:
    whole = grouped(COUNT * COLUMNS, DEPTH, 32, bits, has_minima=True)
    assert whole.minima is not None
    parts = zip(*(each.split(COLUMNS) for each in (whole.codes, whole.scales, whole.minima)), strict=True)
    return [CodedWeight.from_groups(replace(whole, codes=a, scales=b, minima=c)) for a, b, c in parts]


def sent(rows: int, per_row: int = 2, count: int = COUNT) -> torch.Tensor:
    """To different experts, as routers do."""
    scores = torch.rand(rows, count, generator=torch.Generator().manual_seed(rows))
    return scores.topk(per_row).indices


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.usefixtures("two_threads")
def test_each_pair_is_what_the_matrix_by_itself_gives(kernels: NativeKernels, bits: int, dtype: torch.dtype) -> None:
    own = matrices(bits)
    stack, bias = CodedStack.of(COUNT, own), numbers(COUNT, COLUMNS, seed=5, dtype=dtype)
    for rows in (1, 2, 9, 150, 900):  # the last in several turns
        input, experts = numbers(rows, DEPTH, seed=rows, dtype=dtype), sent(rows)
        out = kernels.coded_experts(input, stack, experts, bias)
        for place in range(experts.shape[1]):
            for expert in range(COUNT):
                rows_of = experts[:, place] == expert
                expected = kernels.coded_linear(input[rows_of], own[expert], bias[expert])
                assert torch.equal(out[rows_of, place], expected)


def test_many_rows_that_all_meet_one_expert(kernels: NativeKernels) -> None:
    own, input = matrices(), numbers(1500, DEPTH)
    out = kernels.coded_experts(input, CodedStack.of(COUNT, own), torch.full((1500, 1), 3), None)
    assert torch.equal(out[:, 0], kernels.coded_linear(input, own[3], None))


def test_matrices_that_no_row_names_are_not_read(kernels: NativeKernels) -> None:
    own, input = matrices(), numbers(7, DEPTH)
    experts = torch.tensor([1, 3])[torch.arange(14).view(7, 2) % 2]
    expected = kernels.coded_experts(input, CodedStack.of(COUNT, own), experts, None)
    poisoned = CodedStack.of(COUNT, own)
    poisoned.data[[0, 2, 4, 5]] = 0xFF  # scales that are not numbers
    assert torch.equal(kernels.coded_experts(input, poisoned, experts, None), expected)
    assert kernels.coded_experts(input, poisoned, experts + 1, None).isnan().all()


def test_the_reference_computes_the_same() -> None:
    own, input, experts = matrices(), numbers(9, DEPTH), sent(9)
    stack, bias = CodedStack.of(COUNT, own), numbers(COUNT, COLUMNS)
    expected = ReferenceKernels().coded_experts(input, stack, experts, bias)
    out = NativeKernels().coded_experts(input, stack, experts, bias)
    assert torch.allclose(out, expected, rtol=1e-4, atol=1e-3)
    pair = ReferenceKernels().coded_linear(input[4:5], own[int(experts[4, 1])], bias[experts[4, 1]])
    assert torch.allclose(expected[4, 1], pair[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_a_stack_holds_its_matrices_as_they_are(name: str) -> None:
    own = [coded(name, rows) for rows in (COLUMNS,) * 3]
    stack = CodedStack.of(3, own)
    assert stack.shape == (3, COLUMNS, 512) and stack.nbytes == 3 * own[0].nbytes
    assert stack.num_weights == 3 * own[0].num_weights
    for decoded, weight in zip(stack.decode(), own, strict=True):
        assert torch.equal(decoded, weight.decode())


def test_matrices_that_are_coded_in_other_ways_are_refused() -> None:
    plain = grouped(COLUMNS, DEPTH, 32, 4, has_minima=False)
    first = CodedWeight.from_groups(plain)
    for other in (replace(plain, zero=7), grouped(COLUMNS, DEPTH, 32, 5, False), grouped(COLUMNS, 128, 32, 4, False)):
        with pytest.raises(ConfigError, match="Matrix 1 of 2"):
            CodedStack.of(2, [first, CodedWeight.from_groups(other)])


def test_experts_that_are_not_there_are_refused(kernels: NativeKernels) -> None:
    stack, input = CodedStack.of(COUNT, matrices()), numbers(2, DEPTH)
    for expert in (-1, COUNT):
        with pytest.raises(IndexError, match=f"no expert {expert} among {COUNT}"):
            kernels.coded_experts(input, stack, torch.tensor([[0], [expert]]), None)
    with pytest.raises(ConfigError, match="cannot multiply"):
        kernels.coded_experts(input, stack, torch.tensor([[0]]), None)
    with pytest.raises(ConfigError, match="cannot multiply"):
        kernels.coded_experts(input[:, :32], stack, torch.tensor([[0], [1]]), None)
