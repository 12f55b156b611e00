"""The linear layer against torch in fp32, and against itself in other batches."""

from __future__ import annotations

import pytest
import torch

from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import instruction_sets
from pagoda.kernels.native_layers import DOT_SETS
from pagoda.kernels.reference import ReferenceKernels

ROUNDING_UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SHAPES = [(16, 32), (48, 96), (896, 64), (64, 4864)]


@pytest.fixture(params=instruction_sets())
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return NativeKernels(isa=request.param)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", ROUNDING_UNIT, ids=str)
@pytest.mark.parametrize(("columns", "depth"), [*SHAPES, (33, 64), (16 * 40 + 9, 96), (4, 1), (7, 33), (130, 50)])
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 33, 64, 65, 600])
@pytest.mark.parametrize("has_bias", [False, True])
def test_rows_equal_the_exact_product_to_rounding(
    kernels: NativeKernels, columns: int, depth: int, rows: int, has_bias: bool, dtype: torch.dtype
) -> None:
    input, weight = numbers(rows, depth, seed=1, dtype=dtype), numbers(columns, depth, seed=2, dtype=dtype)
    bias = numbers(columns, seed=3, dtype=dtype) if has_bias else None
    expected = torch.nn.functional.linear(input.double(), weight.double(), None if bias is None else bias.double())
    # Products of fp16 and bf16 are exact in fp32, those of fp32 rounded once; a sum of n terms in any order is within
    # n * 2^-24 of their absolute sum (Higham, Accuracy and Stability, 4.2). The result is rounded to its type.
    magnitude = input.double().abs() @ weight.double().abs().T + (0 if bias is None else bias.double().abs())
    tolerance = magnitude * (depth + 2) * 2.0**-24 + expected.abs() * ROUNDING_UNIT[dtype]
    assert ((kernels.linear(input, weight, bias).double() - expected).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", ROUNDING_UNIT, ids=str)
@pytest.mark.parametrize("depth", [896, 75])
@pytest.mark.usefixtures("two_threads")
def test_a_row_is_bitwise_the_same_in_every_batch(kernels: NativeKernels, depth: int, dtype: torch.dtype) -> None:
    input, weight = numbers(700, depth, seed=1, dtype=dtype), numbers(119, depth, seed=2, dtype=dtype)
    together = kernels.linear(input, weight, None)
    for first, last in [(0, 1), (3, 10), (0, 16), (10, 30), (5, 37), (100, 299), (640, 700)]:
        assert torch.equal(kernels.linear(input[first:last], weight, None), together[first:last])


@pytest.mark.parametrize("rows", [1, 6, 20])
def test_infinities_stay_in_their_rows_and_columns(kernels: NativeKernels, rows: int) -> None:
    input, weight = numbers(rows, 70, dtype=torch.float16), numbers(40, 70, seed=1, dtype=torch.float16)
    expected = kernels.linear(input, weight, None)
    input[0, 3], weight[5, 60] = float("inf"), float("nan")
    actual = kernels.linear(input, weight, None)
    assert actual[:, 5].isnan().all()
    is_other = torch.arange(40) != 5
    assert torch.equal(actual[0, is_other], torch.sign(weight[is_other, 3]) * float("inf"))
    assert torch.equal(actual[1:, is_other], expected[1:, is_other])


def test_fp16_overflows_to_infinity(kernels: NativeKernels) -> None:
    input, weight = torch.full((3, 64), 300.0).half(), torch.full((8, 64), -300.0).half()
    assert torch.equal(kernels.linear(input, weight, None), torch.full((3, 8), float("-inf")).half())


def test_leading_dimensions_are_kept(kernels: NativeKernels) -> None:
    assert kernels.linear(numbers(1, 5, 64), numbers(32, 64), None).shape == (1, 5, 32)


@pytest.mark.parametrize(
    ("input", "weight"),
    [
        (numbers(0, 64), numbers(32, 64)),
        (numbers(1, 64), numbers(3, 64)),
        (numbers(1, 64).float(), numbers(32, 64)),
        (numbers(1, 64).double(), numbers(32, 64).double()),
        (numbers(1, 64), numbers(64, 32).T),
    ],
    ids=["no rows", "few columns", "fp32 input", "fp64", "transposed weight"],
)
def test_what_the_kernel_cannot_do_is_left_to_torch(
    kernels: NativeKernels, input: torch.Tensor, weight: torch.Tensor
) -> None:
    assert not kernels.takes_linear(input, weight)


@pytest.mark.parametrize("isa", instruction_sets())
def test_many_rows_are_left_to_torch_where_it_has_full_arithmetic(isa: str) -> None:
    kernels, input, weight = NativeKernels(isa), numbers(65, 64), numbers(64, 64)
    assert not kernels.takes_linear(input.float(), weight.float())
    assert kernels.takes_linear(input, weight) == (isa not in DOT_SETS)
    assert kernels.takes_linear(input.half(), weight.half())
    assert kernels.takes_linear(input[:64].float(), weight.float())
    assert NativeKernels(isa, deterministic=True).takes_linear(input.float(), weight.float())


def test_the_reference_defines_it() -> None:
    input, weight, bias = numbers(3, 64), numbers(32, 64, seed=1), numbers(32, seed=2)
    expected = torch.nn.functional.linear(input, weight, bias)
    assert torch.equal(ReferenceKernels().linear(input, weight, bias), expected)


def test_the_reference_leaves_every_layer_to_torch() -> None:
    assert not ReferenceKernels().takes_linear(numbers(1, 64), numbers(32, 64))


@pytest.mark.parametrize("dtype", ROUNDING_UNIT, ids=str)
@pytest.mark.parametrize(("columns", "depth"), [*SHAPES, (61, 96), (5, 33)])
@pytest.mark.parametrize("rows", [1, 15, 33, 64, 600])
def test_two_layers_and_their_gate_are_bitwise_what_they_are_apart(
    kernels: NativeKernels, columns: int, depth: int, rows: int, dtype: torch.dtype
) -> None:
    shapes = ((rows, depth), (columns, depth), (columns, depth))
    input, gate, up = (numbers(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes))
    expected = kernels.gated_silu(kernels.linear(input, gate, None), kernels.linear(input, up, None))
    assert torch.equal(kernels.gated_linear(input, gate, up), expected)


def test_two_layers_alike_are_taken_together() -> None:
    kernels, weight = NativeKernels("baseline"), numbers(64, 64)
    assert kernels.takes_gated_linear(numbers(8, 64), weight, numbers(64, 64))
    assert not kernels.takes_gated_linear(numbers(8, 64), weight, numbers(128, 64)[::2])
    assert not kernels.takes_gated_linear(numbers(8, 64), weight, numbers(32, 64))


@pytest.mark.skipif("amx" not in instruction_sets(), reason="no tiles here")
def test_tiles_take_layers_twice_as_wide_as_deep_with_any_number_of_rows() -> None:
    kernels, input = NativeKernels("amx"), numbers(2000, 64)
    wide, deep = numbers(128, 64), numbers(64, 64)
    assert kernels.takes_linear(input, wide)
    assert not kernels.takes_linear(input, deep)
    assert kernels.takes_gated_linear(input, wide, wide)
    assert not kernels.takes_gated_linear(input[:8], wide, wide)
