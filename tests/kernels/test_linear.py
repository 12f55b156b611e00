"""The linear layer against torch in fp32, and against itself in other batches."""

from __future__ import annotations

import pytest
import torch

from pagoda.kernels.native import NativeKernels, instruction_sets
from pagoda.kernels.reference import ReferenceKernels

SHAPES = [(16, 32), (48, 96), (896, 64), (64, 4864)]


def takes_linear(isa: str) -> bool:
    """Whether an instruction set has the kernel at all; the others leave linear layers to torch."""
    smallest = (torch.zeros(1, 32, dtype=torch.bfloat16), torch.zeros(16, 32, dtype=torch.bfloat16))
    return NativeKernels(isa).takes_linear(*smallest)


@pytest.fixture(params=[isa for isa in instruction_sets() if takes_linear(isa)])
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return NativeKernels(isa=request.param)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(("columns", "depth"), [*SHAPES, (33, 64), (16 * 40 + 9, 96)])
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 32, 33, 48, 65, 600])
@pytest.mark.parametrize("has_bias", [False, True])
def test_rows_equal_the_fp32_product_to_rounding(
    kernels: NativeKernels, columns: int, depth: int, rows: int, has_bias: bool
) -> None:
    input, weight = numbers(rows, depth, seed=1), numbers(columns, depth, seed=2)
    bias = numbers(columns, seed=3) if has_bias else None
    expected = torch.nn.functional.linear(input.double(), weight.double(), None if bias is None else bias.double())
    # Products of bf16 are exact in fp32, and a sum of n terms in any order is within n * 2^-24 of their absolute sum
    # (Higham, Accuracy and Stability, 4.2). The result is rounded to bf16: 2^-8.
    magnitude = input.double().abs() @ weight.double().abs().T
    tolerance = magnitude * (depth + 1) * 2.0**-24 + expected.abs() * 2.0**-8
    assert ((kernels.linear(input, weight, bias).double() - expected).abs() <= tolerance).all()


def test_a_row_is_bitwise_the_same_in_every_batch(kernels: NativeKernels) -> None:
    input, weight = numbers(700, 896, seed=1), numbers(119, 896, seed=2)
    together = kernels.linear(input, weight, None)
    for first, last in [(0, 1), (3, 10), (0, 16), (10, 30), (5, 37), (100, 299), (640, 700)]:
        assert torch.equal(kernels.linear(input[first:last], weight, None), together[first:last])


def test_leading_dimensions_are_kept(kernels: NativeKernels) -> None:
    assert kernels.linear(numbers(1, 5, 64), numbers(32, 64), None).shape == (1, 5, 32)


@pytest.mark.parametrize(
    ("input", "weight"),
    [
        (numbers(0, 64), numbers(32, 64)),
        (numbers(65, 64), numbers(32, 64)),
        (numbers(1, 64), numbers(15, 64)),
        (numbers(1, 48), numbers(32, 48)),
        (numbers(1, 64).float(), numbers(32, 64)),
        (numbers(1, 64), numbers(64, 32).T),
    ],
    ids=["no rows", "too many rows", "few columns", "odd depth", "fp32 input", "transposed weight"],
)
def test_what_the_kernel_cannot_do_is_left_to_torch(
    kernels: NativeKernels, input: torch.Tensor, weight: torch.Tensor
) -> None:
    assert not kernels.takes_linear(input, weight)


def test_the_reference_defines_it() -> None:
    input, weight, bias = numbers(3, 64), numbers(32, 64, seed=1), numbers(32, seed=2)
    expected = torch.nn.functional.linear(input, weight, bias)
    assert torch.equal(ReferenceKernels().linear(input, weight, bias), expected)


def test_the_reference_leaves_every_layer_to_torch() -> None:
    assert not ReferenceKernels().takes_linear(numbers(1, 64), numbers(32, 64))


@pytest.mark.parametrize(("columns", "depth"), [*SHAPES, (61, 96)])
@pytest.mark.parametrize("rows", [1, 15, 33, 64, 600])
def test_two_layers_and_their_gate_are_bitwise_what_they_are_apart(
    kernels: NativeKernels, columns: int, depth: int, rows: int
) -> None:
    input, gate, up = (numbers(*shape, seed=1) for shape in ((rows, depth), (columns, depth), (columns, depth)))
    expected = kernels.gated_silu(kernels.linear(input, gate, None), kernels.linear(input, up, None))
    assert torch.equal(kernels.gated_linear(input, gate, up), expected)


def test_layers_twice_as_wide_as_deep_are_taken_with_any_number_of_rows(kernels: NativeKernels) -> None:
    input, wide, deep = numbers(2000, 64), numbers(128, 64), numbers(64, 64)
    assert kernels.takes_linear(input, wide)
    assert not kernels.takes_linear(input, deep)
    assert kernels.takes_gated_linear(input, wide, wide)
    assert not kernels.takes_gated_linear(input[:8], wide, wide)
    assert not kernels.takes_gated_linear(input, wide, numbers(256, 64)[::2])
