"""Coded weights: what they stand for, to the bit, and products with them against plain torch, and in other batches."""

from __future__ import annotations

import copy
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from pagoda.checkpoint.gguf_header import CODED_TYPES
from pagoda.errors import ConfigError
from pagoda.kernels.coded_weight import CodedWeight, GroupedCodes
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import instruction_sets
from pagoda.kernels.reference import ReferenceKernels
from pagoda.kernels.reference_layers import coded_input
from pagoda.kernels.weight_memory import WeightMemory

DEPTH = 512
# Where the scales of a block are, in halves: all else is codes, of which any will do.
SCALES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 1)),
    "Q2_K": (-2, -1),
    "Q3_K": (-1,),
    "Q6_K": (-1,),
}
ROUNDING_UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@pytest.fixture(params=instruction_sets())
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return NativeKernels(isa=request.param)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def blocks_of(name: str, rows: int, depth: int = DEPTH) -> np.ndarray:
    """Rows of a GGUF tensor, uint8, of any codes and scales."""
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    generator = np.random.default_rng(rows)
    blocks = generator.integers(256, size=(rows, depth // block, nbytes), dtype=np.uint8)
    halves = generator.uniform(0.001, 0.02, size=(*blocks.shape[:2], nbytes // 2)).astype(np.float16)
    for place in SCALES[name]:
        at = place % (nbytes // 2) * 2
        blocks[..., at : at + 2] = halves[..., place, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def coded(name: str, rows: int = 40, depth: int = DEPTH) -> CodedWeight:
    return CodedWeight.from_gguf(name, (rows, depth), [torch.from_numpy(blocks_of(name, rows, depth))])


def grouped(rows: int, depth: int, group: int, bits: int, has_minima: bool) -> GroupedCodes:
    codes = torch.randint(1 << bits, (rows, depth), generator=torch.Generator().manual_seed(rows), dtype=torch.uint8)
    shape = (rows, -(-depth // group))
    minima = numbers(*shape, seed=2) if has_minima else None
    return GroupedCodes(codes, bits, numbers(*shape, seed=1), group, 0 if has_minima else 1 << (bits - 1), minima)


def assert_is_product(out: torch.Tensor, input: torch.Tensor, weight: CodedWeight) -> None:
    rows, matrix = coded_input(input).double(), weight.decode().double()
    expected = rows @ matrix.T
    # Scale and minimum, which may cancel: codes of a row spread over most of their range, so that neither is more than
    # four times its largest weight. Each unit is rounded at most six times in fp32, and the sum so often.
    magnitude = rows.abs().sum(dim=-1, keepdim=True) * 8 * matrix.abs().amax(dim=1)
    units = weight.depth / 32
    tolerance = magnitude * (2 * units + 6) * 2.0**-24 + expected.abs() * ROUNDING_UNIT[input.dtype]
    assert ((out.double() - expected).abs() <= tolerance).all()


@pytest.mark.parametrize("name", sorted(CODED_TYPES))
def test_gguf_types_stand_for_what_its_own_package_reads(name: str) -> None:
    blocks = blocks_of(name, rows=37)
    expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name])
    weight = CodedWeight.from_gguf(name, (len(blocks), DEPTH), [torch.from_numpy(blocks)])
    assert torch.equal(weight.decode(), torch.from_numpy(expected))
    rows = torch.tensor([[36, 0], [7, 7]])
    assert torch.equal(weight.decode_rows(rows, torch.bfloat16), torch.from_numpy(expected)[rows].bfloat16())
    nbytes = 48 * blocks.shape[1]  # whole blocks of 16 rows; parts of scales have a byte each
    assert nbytes <= weight.nbytes <= 1.2 * nbytes


def test_blocks_that_come_in_parts_are_laid_out_as_the_whole() -> None:
    blocks = torch.from_numpy(blocks_of("Q4_K", rows=37))
    parts = iter((blocks[:16], blocks[16:32], blocks[32:]))
    weight = CodedWeight.from_gguf("Q4_K", (37, DEPTH), parts, WeightMemory(piece_nbytes=1 << 16))
    assert weight.stays
    assert torch.equal(weight.data, CodedWeight.from_gguf("Q4_K", (37, DEPTH), [blocks]).data)
    assert not copy.deepcopy(weight).stays


@pytest.mark.parametrize("has_minima", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("depth", "group"), [(96, 32), (100, 64), (256, 128), (70, 96)])
def test_groups_stand_for_what_they_say(depth: int, group: int, bits: int, has_minima: bool) -> None:
    groups = grouped(21, depth, group, bits, has_minima)
    assert torch.equal(CodedWeight.from_groups(groups).decode(), groups.numbers())


def with_zeros(rows: int, depth: int, group: int, bits: int, most: int) -> GroupedCodes:
    groups = grouped(rows, depth, group, bits, has_minima=False)
    zeros = torch.randint(most + 1, groups.scales.shape, generator=torch.Generator().manual_seed(bits))
    return replace(groups, scales=groups.scales.half().float(), zero=0, minima=groups.scales.half().float() * zeros)


@pytest.mark.parametrize(("bits", "most"), [(4, 15), (8, 127), (3, 8)])
@pytest.mark.parametrize(("depth", "group"), [(96, 32), (100, 64), (256, 128), (70, 96)])
def test_zeros_are_a_byte_and_stand_for_the_same(
    kernels: NativeKernels, depth: int, group: int, bits: int, most: int
) -> None:
    groups = with_zeros(21, depth, group, bits, most)
    weight, full = CodedWeight.from_groups(groups), CodedWeight.from_groups(groups, in_full=True)
    assert torch.equal(weight.decode(), groups.numbers())
    units = -(-depth // 32)
    assert full.nbytes - weight.nbytes == 32 * (-(-units // (group // 32)) * 6 - units)
    for rows in (1, 9, 40):
        input = numbers(rows, depth, seed=rows)
        assert torch.equal(kernels.coded_linear(input, weight, None), kernels.coded_linear(input, full, None))


@pytest.mark.parametrize("most", [128, 255])
def test_zeros_that_no_signed_byte_holds_are_minima(most: int) -> None:
    groups = with_zeros(32, 256, 32, 8, most)
    assert groups.zeros().max() > 127
    assert torch.equal(CodedWeight.from_groups(groups).decode(), groups.numbers())


def test_minima_between_codes_are_no_zeros() -> None:
    groups = with_zeros(32, 256, 32, 4, 15)
    other = replace(groups, minima=groups.minima + 0.25 * groups.scales)
    negative = replace(groups, minima=-groups.minima)
    assert groups.zeros() is not None
    assert other.zeros() is None and negative.zeros() is None
    for each in (other, negative):
        assert torch.equal(CodedWeight.from_groups(each).decode(), each.numbers())


def test_scales_that_fp16_holds_are_kept_in_it() -> None:
    groups = grouped(16, 64, 32, 4, has_minima=True)
    rounded = GroupedCodes(groups.codes, 4, groups.scales.half(), 32, 0, groups.minima.half())
    assert CodedWeight.from_groups(rounded).nbytes == CodedWeight.from_groups(groups).nbytes - 16 * 2 * 2 * 2


@pytest.mark.parametrize("dtype", ROUNDING_UNIT, ids=str)
@pytest.mark.parametrize("name", sorted(CODED_TYPES))
def test_products_equal_those_of_what_codes_stand_for(kernels: NativeKernels, name: str, dtype: torch.dtype) -> None:
    weight = coded(name)
    for rows in (1, 2, 7, 30):
        input = numbers(rows, DEPTH, seed=rows, dtype=dtype)
        assert_is_product(kernels.coded_linear(input, weight, None), input, weight)


@pytest.mark.parametrize("has_minima", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("depth", "group"), [(100, 64), (256, 128), (7, 32)])
def test_products_with_groups(kernels: NativeKernels, depth: int, group: int, bits: int, has_minima: bool) -> None:
    weight = CodedWeight.from_groups(grouped(21, depth, group, bits, has_minima))
    for rows in (1, 3, 20):
        input = numbers(rows, depth, seed=rows)
        assert_is_product(kernels.coded_linear(input, weight, None), input, weight)


@pytest.mark.parametrize("name", ["Q8_0", "Q5_0", "Q6_K", "IQ4_NL", "Q2_K"])
def test_codes_at_their_ends_do_not_overflow(kernels: NativeKernels, name: str) -> None:
    type = gguf.GGMLQuantizationType[name]
    for byte in (0, 255, 127, 128):
        blocks = blocks_of(name, rows=16)
        scales = blocks.copy()
        blocks[:] = byte
        nbytes = gguf.GGML_QUANT_SIZES[type][1]
        for place in SCALES[name]:
            at = place % (nbytes // 2) * 2
            for start in range(at, blocks.shape[1], nbytes):
                blocks[:, start : start + 2] = scales[:, start : start + 2]
        weight = CodedWeight.from_gguf(name, (len(blocks), DEPTH), [torch.from_numpy(blocks)])
        input = torch.ones(9, DEPTH) * torch.tensor([1.0, -1.0, 1.0])[torch.arange(9) % 3, None]
        assert_is_product(kernels.coded_linear(input, weight, None), input, weight)


def test_a_bias_is_added_before_rounding(kernels: NativeKernels) -> None:
    weight, input, bias = coded("Q4_K"), numbers(3, DEPTH), numbers(40, seed=9)
    plain = kernels.coded_linear(input, weight, None)
    assert torch.equal(kernels.coded_linear(input, weight, bias), plain + bias)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K", "Q8_0"])
@pytest.mark.usefixtures("two_threads")
def test_a_row_is_bitwise_the_same_in_every_batch(kernels: NativeKernels, name: str) -> None:
    weight, input = coded(name, rows=120), numbers(600, DEPTH, dtype=torch.bfloat16)
    together = kernels.coded_linear(input, weight, None)
    for first, last in [(0, 1), (3, 10), (0, 16), (10, 30), (5, 290), (590, 600)]:
        assert torch.equal(kernels.coded_linear(input[first:last], weight, None), together[first:last])


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K"])
@pytest.mark.usefixtures("many_threads")
def test_what_threads_take_from_each_other_changes_nothing(kernels: NativeKernels, name: str) -> None:
    weight, input = coded(name, rows=2470), numbers(17, DEPTH, dtype=torch.bfloat16)
    together = kernels.coded_linear(input, weight, None)
    assert_is_product(together, input, weight)
    for first, last in [(0, 1), (1, 3), (2, 5), (3, 10), (0, 17)] * 5:
        assert torch.equal(kernels.coded_linear(input[first:last], weight, None), together[first:last])


@pytest.mark.parametrize("rows", [1, 7, 9, 300])
@pytest.mark.usefixtures("two_threads")
def test_layers_that_share_their_rows_are_bitwise_what_each_is(kernels: NativeKernels, rows: int) -> None:
    """Of all codings, so that some are given other codes of the rows, and of sizes that threads do not share evenly."""
    weights = [coded(name, rows=10 + 30 * i) for i, name in enumerate(sorted(CODED_TYPES))]
    weights.append(CodedWeight.from_groups(grouped(1, DEPTH, 32, 4, True)))
    input = numbers(rows, DEPTH, dtype=torch.bfloat16)
    biases = [numbers(each.rows, seed=2, dtype=torch.bfloat16) if each.rows % 4 else None for each in weights]
    outs = kernels.coded_linears(input, list(zip(weights, biases, strict=True)))
    for weight, bias, out in zip(weights, biases, outs, strict=True):
        assert torch.equal(out, kernels.coded_linear(input, weight, bias))
    assert kernels.coded_linears(input, []) == []


def test_what_is_not_a_number_shows_in_its_row_alone(kernels: NativeKernels) -> None:
    weight, input = coded("Q8_0"), numbers(20, DEPTH)
    expected = kernels.coded_linear(input, weight, None)
    input[3, 100], input[8, 5] = float("nan"), float("inf")
    out = kernels.coded_linear(input, weight, None)
    assert out[3].isnan().all() and not out[8].isfinite().any()
    others = torch.tensor([row not in (3, 8) for row in range(20)])
    assert torch.equal(out[others], expected[others])


def test_zeros_give_zeros(kernels: NativeKernels) -> None:
    assert torch.equal(kernels.coded_linear(torch.zeros(2, DEPTH), coded("Q4_1"), None), torch.zeros(2, 40))


def test_the_reference_computes_the_same() -> None:
    weight, input = coded("Q5_K"), numbers(5, DEPTH, dtype=torch.bfloat16)
    assert_is_product(ReferenceKernels().coded_linear(input, weight, None), input, weight)


def test_rows_that_are_not_there_are_refused() -> None:
    weight = coded("Q4_0")
    for number in (-1, 40):
        with pytest.raises(IndexError, match="40 rows"):
            weight.decode_rows(torch.tensor([0, number]))


def test_rows_may_be_found_by_other_whole_numbers_and_not_elsewhere() -> None:
    weight, numbers = coded("Q4_0"), torch.tensor([[3, 9], [1, 0]]).T
    assert torch.equal(weight.decode_rows(numbers.int()), weight.decode()[numbers])
    with pytest.raises(ConfigError, match="on meta"):
        weight.decode_rows(numbers.to("meta"))


def test_blocks_of_another_shape_are_refused(kernels: NativeKernels) -> None:
    blocks = torch.from_numpy(blocks_of("Q4_K", 4))
    with pytest.raises(ConfigError, match="Q4_K"):
        CodedWeight.from_gguf("Q4_K", (len(blocks), DEPTH + 32), [blocks])
    with pytest.raises(ConfigError, match="Q4_K"):
        CodedWeight.from_gguf("Q4_K", (len(blocks), DEPTH), [blocks[:, :-1]])
    with pytest.raises(ConfigError, match="cannot multiply"):
        kernels.coded_linear(numbers(1, DEPTH - 32), coded("Q4_K"), None)
