"""Coded weights in Triton, interpreted: numbers to the bit, and products against plain torch over these numbers."""

from __future__ import annotations

import pytest
import torch

from kernels.interpreted import TritonLayers
from kernels.test_coded import DEPTH, ROUNDING_UNIT, coded, grouped, numbers, with_zeros
from pagoda.checkpoint.gguf_header import CODED_TYPES
from pagoda.errors import ConfigError
from pagoda.kernels.coded_stack import CodedStack
from pagoda.kernels.coded_weight import CodedWeight, HeldCodes
from pagoda.kernels.triton import coded as launching

DTYPES = tuple(ROUNDING_UNIT)
# Depths that no tile and no unit divides, and superunits of one unit, of some, and of all.
GROUPS = ((96, 32), (100, 64), (70, 96), (300, 512))


def product(input: torch.Tensor, weight: CodedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    return TritonLayers().coded_linear(input, weight, bias)


def assert_is_product(out: torch.Tensor, input: torch.Tensor, weight: CodedWeight) -> None:
    """Over weights in the type of the input, with sums in fp32, rounded once."""
    rows, matrix = input.double(), weight.decode(input.dtype).double()
    expected = rows @ matrix.T
    magnitude = rows.abs() @ matrix.abs().T
    tolerance = weight.depth * 2.0**-24 * magnitude + expected.abs() * ROUNDING_UNIT[input.dtype]
    assert out.dtype is input.dtype
    assert ((out.double() - expected).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted(CODED_TYPES))
def test_numbers_of_gguf_types_are_those_of_the_compiled_module(name: str, dtype: torch.dtype) -> None:
    weight = coded(name, rows=37)
    assert torch.equal(launching.decoded(weight, dtype), weight.decode(dtype))
    rows = torch.tensor([[36, 0], [7, 7]], dtype=torch.int32)
    assert torch.equal(TritonLayers().coded_rows(weight, rows, dtype), weight.decode_rows(rows, dtype))


@pytest.mark.parametrize("has_minima", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("depth", "group"), GROUPS)
def test_numbers_of_groups(depth: int, group: int, bits: int, has_minima: bool) -> None:
    groups = grouped(21, depth, group, bits, has_minima)
    weight = CodedWeight.from_groups(groups, in_full=group == 64)
    assert torch.equal(launching.decoded(weight, torch.float32), groups.numbers())


@pytest.mark.parametrize(("bits", "most"), [(4, 15), (8, 127), (3, 8)])
@pytest.mark.parametrize(("depth", "group"), GROUPS)
def test_numbers_with_zeros(depth: int, group: int, bits: int, most: int) -> None:
    groups = with_zeros(21, depth, group, bits, most)
    weight = CodedWeight.from_groups(groups)
    assert weight.coding.has_zeros
    assert torch.equal(launching.decoded(weight, torch.float32), groups.numbers())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["Q4_K", "Q8_0"])
def test_products_with_few_rows_and_with_many(name: str, dtype: torch.dtype) -> None:
    weight = coded(name, rows=72)
    for rows in (1, 17, launching.FEW_ROWS + 1):
        input = numbers(rows, DEPTH, seed=rows, dtype=dtype)
        assert_is_product(product(input, weight), input, weight)


@pytest.mark.parametrize("name", sorted(CODED_TYPES))
def test_products_read_codes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few rows nothing is decoded."""
    monkeypatch.setattr(launching, "_decode", None)
    weight, input = coded(name), numbers(3, DEPTH)
    assert_is_product(product(input, weight), input, weight)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(("depth", "group"), GROUPS)
def test_products_with_groups(depth: int, group: int, bits: int) -> None:
    for groups in (grouped(21, depth, group, bits, bits % 2 == 0), with_zeros(21, depth, group, bits, 3)):
        weight, input = CodedWeight.from_groups(groups), numbers(3, depth)
        assert_is_product(product(input, weight), input, weight)


def test_depth_is_split_by_what_a_weight_is(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, input = coded("Q4_K", rows=20, depth=1024), numbers(20, 1024)
    for most, tiles in ((16, 1), (3, 3)):
        monkeypatch.setattr(launching, "MOST_SPLITS", most)
        assert launching._tile(weight, 1).split_tiles == tiles
        together = product(input, weight)
        assert_is_product(together, input, weight)
        for first, last in [(0, 1), (3, 12)]:
            assert torch.equal(product(input[first:last], weight), together[first:last])


def test_rows_are_the_same_however_many_there_are() -> None:
    """As `deterministic` wants it, where many would else be left to torch; in programs of one kind."""
    weight, input, layers = coded("Q8_0", rows=20), numbers(launching.FEW_ROWS + 5, DEPTH), TritonLayers(True)
    tiles = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "_decode", None)
        original = launching._tile
        patch.setattr(launching, "_tile", lambda weight, rows: (tiles.append(rows), original(weight, rows))[1])
        together = layers.coded_linear(input, weight, None)
        assert_is_product(together, input, weight)
        for first, last in [(0, 1), (3, 40), (60, 69)]:
            assert torch.equal(layers.coded_linear(input[first:last], weight, None), together[first:last])
    assert set(tiles) == {launching.MORE_ROWS}


@pytest.mark.parametrize("deterministic", [False, True])
def test_heads_are_multiplied_along_rows(deterministic: bool) -> None:
    weight, input = coded("Q4_0", rows=96), numbers(5, 2, 16)
    found = TritonLayers(deterministic).coded_heads(input, weight, 16)
    expected = torch.einsum("rhd,hdc->rhc", input, weight.decode().unflatten(0, (2, 48))[:, 16:32])
    torch.testing.assert_close(found, expected)


def test_a_bias_is_added_before_rounding() -> None:
    weight, bias = coded("Q4_K"), numbers(40, seed=9)
    for rows in (3, launching.FEW_ROWS + 1):
        input = numbers(rows, DEPTH)
        torch.testing.assert_close(product(input, weight, bias), product(input, weight) + bias)
    half, input = bias.bfloat16(), numbers(3, DEPTH, dtype=torch.bfloat16)
    wide = product(input.float(), CodedWeight.from_groups(grouped(40, DEPTH, 32, 8, False)), half.float())
    near = product(input, CodedWeight.from_groups(grouped(40, DEPTH, 32, 8, False)), half)
    assert (near.float() - wide).norm() <= 2.0**-7 * wide.norm()


def test_many_rows_meet_one_slice_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, input, bias = coded("Q5_K", rows=72), numbers(launching.FEW_ROWS + 1, DEPTH), numbers(72, seed=1)
    whole = product(input, weight, bias)
    monkeypatch.setattr(launching, "SLICE_NBYTES", 32 * DEPTH * 4)
    assert [part.start for part in launching._slices(weight, torch.float32)] == [0, 32, 64]
    most = float(whole.abs().max())
    torch.testing.assert_close(product(input, weight, bias), whole, rtol=0, atol=DEPTH * 2.0**-24 * most)


def test_input_may_have_any_shape_and_lie_apart() -> None:
    weight, input = coded("Q8_0"), numbers(2, 3, 2 * DEPTH)
    expected = product(input[..., :DEPTH].contiguous(), weight)
    assert expected.shape == (2, 3, 40)
    assert torch.equal(product(input[..., :DEPTH], weight), expected)
    assert torch.equal(product(input[..., :DEPTH].mT.contiguous().mT, weight), expected)
    assert product(input[:0, :, :DEPTH], weight).shape == (0, 3, 40)


def test_siblings_are_what_each_is() -> None:
    layers = [(coded("Q4_K"), None), (coded("Q6_K", rows=16), numbers(16))]
    input = numbers(5, DEPTH)
    outs = TritonLayers().coded_linears(input, layers)
    assert all(torch.equal(out, product(input, *each)) for out, each in zip(outs, layers, strict=True))


def test_experts_and_heads_go_by_the_same_products() -> None:
    stack = CodedStack.of(3, (coded("Q4_K", rows=32 + 0 * each) for each in range(3)))
    input, experts = numbers(4, DEPTH), torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1]])
    out = TritonLayers().coded_experts(input, stack, experts, None)
    for row in range(4):
        for place in range(2):
            weight = stack.matrix(int(experts[row, place]))
            assert torch.equal(out[row, place], product(input[row : row + 1], weight)[0])


def test_rows_that_are_not_there_are_zeros() -> None:
    """Nobody waits for the numbers of rows on a GPU, and no memory beyond the weight is read."""
    weight = coded("Q4_1")
    rows = TritonLayers().coded_rows(weight, torch.tensor([-1, 39, 40, 1 << 40]), torch.float32)
    assert torch.equal(rows[1], weight.decode()[39])
    assert not rows[[0, 2, 3]].any()


def test_weights_on_a_device_decode_there(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = coded("Q3_K")
    expected = weight.decode(torch.bfloat16)
    monkeypatch.setattr(HeldCodes, "is_on_device", True)
    monkeypatch.setattr(CodedWeight, "decoding", None)
    assert torch.equal(weight.decode(torch.bfloat16), expected)
    assert torch.equal(weight.decode_rows(torch.tensor([5, 0]), torch.bfloat16), expected[[5, 0]])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot multiply"):
        product(numbers(1, DEPTH - 32), coded("Q4_K"))
    with pytest.raises(ConfigError, match="cannot multiply"):
        product(numbers(1, DEPTH).double(), coded("Q4_K"))
