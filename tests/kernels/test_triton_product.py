"""The products of `deterministic` on GPUs, interpreted, against torch: right, and the same bits for a row alone."""

import pytest
import torch

from kernels.interpreted import TritonLayers
from pagoda.kernels.reference_layers import ReferenceLayers
from pagoda.kernels.triton import product
from pagoda.kernels.triton.product import multiply, tile_of

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Columns and depth: less than a tile, several tiles with a rest.
SIZES = [(5, 8), (70, 100), (33, 192)]


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(actual: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """`input` [..., rows, depth] times `weight` [..., depth, columns], both in fp64: summed in fp32, and rounded."""
    dtype, depth = actual.dtype, input.shape[-1]
    expected, size = input.double() @ weight.double(), input.double().abs() @ weight.double().abs()
    if bias is not None:
        expected, size = expected + bias.double(), size + bias.double().abs()
    bound = (depth + 1) * torch.finfo(torch.float32).eps * size + torch.finfo(dtype).eps * expected.abs()
    assert ((actual.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "depth"), SIZES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear_layers_are_those_of_torch(columns, depth, has_bias, dtype):
    input = numbers(1, 66, 2 * depth, dtype=dtype)[..., :depth]  # parts of wider rows, more than a tile of them
    weight = numbers(columns, depth, dtype=dtype, seed=1)
    bias = numbers(columns, dtype=dtype, seed=2) if has_bias else None
    layers = TritonLayers(deterministic=True)
    assert layers.takes_linear(input, weight)
    actual = layers.linear(input, weight, bias)
    assert actual.shape == (1, 66, columns) and actual.dtype is dtype
    check(actual[0], input[0], weight.T, bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_transposed", [True, False])
def test_products_of_heads_are_those_of_torch(is_transposed, dtype):
    input = numbers(5, 3, 48, dtype=dtype)
    weight = numbers(3, 48, 20, dtype=dtype, seed=1)
    if is_transposed:
        weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
    actual = TritonLayers(deterministic=True).multiply_heads(input, weight)
    assert actual.shape == (5, 3, 20)
    check(actual.transpose(0, 1), input.transpose(0, 1), weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone_and_among_others(dtype):
    input, weight = numbers(70, 1, 100, dtype=dtype), numbers(1, 100, 40, dtype=dtype, seed=1)
    whole = multiply(input, weight)
    for first, last in ((0, 1), (69, 70), (3, 20), (5, 70)):
        assert torch.equal(multiply(input[first:last], weight), whole[first:last])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [16, 8192])
def test_launches_differ_with_the_number_of_rows_in_nothing_else(columns, dtype, monkeypatch):
    """What a card computes a row by is its program; bits of the interpreter could not tell."""
    launches = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **options: launches.append((grid[1:], arguments[7:], options))

    monkeypatch.setattr(product, "multiply_tile", Kernel())
    weight = torch.empty(1, 64, columns, dtype=dtype)
    for rows in (1, 7, 64, 65, 4096):
        multiply(torch.empty(rows, 1, 64, dtype=dtype), weight)
    assert len(launches) == 5
    assert all(launch == launches[0] for launch in launches)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [16, 1 << 17])
def test_tiles_are_what_cards_take(columns, dtype):
    tile = tile_of(torch.empty(1, dtype=dtype), columns)
    for size in (tile.rows, tile.columns, tile.depth):
        assert size >= 16 and size & (size - 1) == 0
    nbytes = (tile.rows + tile.columns) * tile.depth * dtype.itemsize * tile.num_stages
    assert nbytes <= 99 << 10  # of Ada


def test_nothing_is_taken_unless_it_is_asked_for():
    rows, weight = numbers(2, 8, dtype=torch.float32), numbers(4, 8, dtype=torch.float32)
    assert not TritonLayers().takes_linear(rows, weight)
    assert not TritonLayers(deterministic=True).takes_linear(rows.bfloat16(), weight)
    heads, weights = numbers(2, 3, 8, dtype=torch.float32), numbers(3, 8, 4, dtype=torch.float32)
    assert torch.equal(TritonLayers().multiply_heads(heads, weights), ReferenceLayers().multiply_heads(heads, weights))
    assert multiply(heads[:0], weights).shape == (0, 3, 4)
