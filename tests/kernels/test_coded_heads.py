"""Products of each head along its rows of coded weights: close to exact, and the same bits in every batch."""

from __future__ import annotations

import pytest
import torch

from kernels.test_coded import ROUNDING_UNIT, coded, grouped, numbers, with_zeros
from pagoda.checkpoint.gguf_header import CODED_TYPES
from pagoda.errors import ConfigError
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import instruction_sets
from pagoda.kernels.reference import ReferenceKernels

HEADS = 3
DEPTH, OTHERS = 32, 48


@pytest.fixture(params=instruction_sets())
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return NativeKernels(isa=request.param)


def rows_of(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A part of wider rows, heads first, as a layer has them."""
    return numbers(HEADS, count, DEPTH + 8, seed=count, dtype=dtype).transpose(0, 1)[..., :DEPTH]


def assert_is_product(out: torch.Tensor, input: torch.Tensor, weight: CodedWeight, first: int) -> None:
    matrices = weight.decode().double().unflatten(0, (HEADS, -1))[:, first : first + DEPTH]
    expected = torch.einsum("rhd,hdc->rhc", input.double(), matrices)
    # Scale and minimum, which may cancel, are at most four times the largest weight of a row each.
    most = 8 * matrices.abs().amax(dim=-1, keepdim=True).expand_as(matrices)
    magnitude = torch.einsum("rhd,hdc->rhc", input.double().abs(), most)
    tolerance = magnitude * (DEPTH + 6) * 2.0**-24 + expected.abs() * ROUNDING_UNIT[input.dtype] + 2.0**-24
    assert out.dtype is input.dtype
    assert ((out.double() - expected).abs() <= tolerance).all()


@pytest.mark.parametrize("name", sorted(CODED_TYPES))
def test_products_equal_those_of_what_codes_stand_for(kernels: NativeKernels, name: str) -> None:
    weight = coded(name, rows=HEADS * (DEPTH + OTHERS))
    for rows, first in ((1, 0), (7, OTHERS)):
        assert_is_product(kernels.coded_heads(rows_of(rows), weight, first), rows_of(rows), weight, first)


@pytest.mark.parametrize("has_minima", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("columns", "group"), [(100, 64), (256, 128), (7, 32)])
def test_products_with_groups(kernels: NativeKernels, columns: int, group: int, bits: int, has_minima: bool) -> None:
    weight = CodedWeight.from_groups(grouped(HEADS * (DEPTH + OTHERS), columns, group, bits, has_minima))
    assert_is_product(kernels.coded_heads(rows_of(5), weight, OTHERS), rows_of(5), weight, OTHERS)


def test_products_with_zeros(kernels: NativeKernels) -> None:
    weight = CodedWeight.from_groups(with_zeros(HEADS * (DEPTH + OTHERS), 160, 64, 4, 15))
    assert "zeros" in weight.kind
    assert_is_product(kernels.coded_heads(rows_of(3), weight, 16), rows_of(3), weight, 16)


@pytest.mark.parametrize("dtype", ROUNDING_UNIT, ids=str)
@pytest.mark.usefixtures("two_threads")
def test_a_row_has_the_same_bits_in_every_batch(kernels: NativeKernels, dtype: torch.dtype) -> None:
    weight, input = coded("Q4_K", rows=HEADS * (DEPTH + OTHERS)), rows_of(11, dtype)
    together = kernels.coded_heads(input, weight, 0)
    assert_is_product(together, input, weight, 0)
    for first, last in [(0, 1), (3, 5), (4, 7), (2, 6), (5, 11)]:
        assert torch.equal(kernels.coded_heads(input[first:last], weight, 0), together[first:last])


def test_no_rows_give_none(kernels: NativeKernels) -> None:
    weight = coded("Q8_0", rows=HEADS * DEPTH)
    assert kernels.coded_heads(rows_of(0), weight, 0).shape == (0, HEADS, weight.depth)


def test_the_reference_computes_the_same() -> None:
    weight, input = coded("Q5_K", rows=HEADS * (DEPTH + OTHERS)), rows_of(4, torch.bfloat16)
    assert_is_product(ReferenceKernels().coded_heads(input, weight, OTHERS), input, weight, OTHERS)


@pytest.mark.parametrize(
    ("rows", "first"), [(HEADS * DEPTH + 1, 0), (HEADS * 40, 0), (HEADS * 64, 48), (HEADS * 64, 8)]
)
def test_rows_that_no_head_has_are_refused(kernels: NativeKernels, rows: int, first: int) -> None:
    with pytest.raises(ConfigError, match="have no rows"):
        kernels.coded_heads(rows_of(2), coded("Q8_0", rows), first)
