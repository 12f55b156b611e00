"""Layers whose weights are codes, on the device: few rows of input meet codes, many meet slices that were decoded.

Knows coded weights, and sizes the launches. How codes lie is for `coded_numbers.py`. Input is not coded, as processors
do it: products are those with the numbers that weights stand for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton

from pagoda.errors import ConfigError
from pagoda.kernels.coded_sizes import BLOCK_ROWS, UNIT_DEPTH
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.kernels.layers import CodedLayer
from pagoda.kernels.native_calls import compiled
from pagoda.kernels.reference_layers import ReferenceLayers
from pagoda.kernels.triton.coded_numbers import add_splits, decode_tile, multiply_few

# Rows of input that codes are read for; for more they are decoded first. Not measured.
FEW_ROWS = 64
# Of these a program takes so many, if there are no more, or else so many.
LEAST_ROWS, MORE_ROWS = 16, 32
# Programs that a product of few rows is divided into, if it can be, and splits of depth at most. Not measured.
WANTED_PROGRAMS, MOST_SPLITS = 512, 16
# Of a slice of decoded weights.
SLICE_NBYTES = 64 << 20
STEP_DEPTH = 4
ADDED_COLUMNS = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class CodedTile:
    """What a program has at a time: rows of input, columns of the result (rows of a weight), steps of depth.

    All are powers of two, and no less than tensor cores take. A split has `split_tiles` tiles of depth.
    """

    rows: int
    columns: int
    steps: int
    split_tiles: int = 1


@dataclass(frozen=True)
class CodedShape:
    """How the rows of a weight are coded, as `Coding` of csrc/coding.h says, and the bytes of that."""

    bits: int
    zero: int
    num_parts: int
    has_minimum: bool
    has_table: bool
    has_zeros: bool
    superunit: int
    scale_nbytes: int
    depth: int

    @classmethod
    def of(cls, weight: CodedWeight) -> CodedShape:
        coding = weight.coding
        return cls(
            bits=coding.bits,
            zero=coding.zero,
            num_parts=coding.num_parts,
            has_minimum=coding.has_minimum,
            has_table=coding.has_table,
            has_zeros=coding.has_zeros,
            superunit=coding.superunit,
            scale_nbytes=2 if coding.scale == compiled().Number.FP16 else 4,
            depth=weight.depth,
        )

    @property
    def head_nbytes(self) -> int:
        return (2 if self.has_minimum and not self.has_zeros else 1) * BLOCK_ROWS * self.scale_nbytes

    @property
    def parts_nbytes(self) -> int:
        return (1 if self.has_zeros else self.num_parts * (2 if self.has_minimum else 1)) * BLOCK_ROWS

    @property
    def unit_nbytes(self) -> int:
        return self.parts_nbytes + BLOCK_ROWS * UNIT_DEPTH * self.bits // 8

    @property
    def superunit_nbytes(self) -> int:
        return self.head_nbytes + self.superunit * self.unit_nbytes

    @property
    def num_units(self) -> int:
        return -(-self.depth // UNIT_DEPTH)

    @property
    def block_nbytes(self) -> int:
        return -(-self.num_units // self.superunit) * self.head_nbytes + self.num_units * self.unit_nbytes

    def num_tiles(self, steps: int) -> int:
        return -(-self.depth // (steps * STEP_DEPTH))


DECODED = CodedTile(rows=16, columns=16, steps=64)


class CodedLayers(ReferenceLayers):
    """Tensors on the device, or on the CPU where Triton interprets. Experts are the reference's.

    If `deterministic`, rows meet codes however many they are, in programs of one kind.
    """

    codes_input = False

    def __init__(self, deterministic: bool = False) -> None:
        self._is_deterministic = deterministic

    def coded_linears(self, input: torch.Tensor, layers: Sequence[CodedLayer]) -> list[torch.Tensor]:
        return [_linear(input, weight, bias, self._is_deterministic) for weight, bias in layers]

    def coded_heads(self, input: torch.Tensor, weight: CodedWeight, first: int) -> torch.Tensor:
        heads, depth = input.shape[1:]
        matrices = decoded(weight, input.dtype).unflatten(0, (heads, -1))[:, first : first + depth]
        return self.multiply_heads(input, matrices)

    def coded_rows(self, weight: CodedWeight, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return decoded_rows(weight, numbers, dtype)


def decoded_rows(weight: CodedWeight, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows of weights by whole `numbers` on the device: [*numbers, depth]. Those that are not there are zeros."""
    listed = numbers.reshape(-1).contiguous()
    return _decode(weight, listed, 0, len(listed), dtype).view(*numbers.shape, weight.depth)


def decoded(weight: CodedWeight, dtype: torch.dtype) -> torch.Tensor:
    """All weights: [rows, depth]."""
    return _decode(weight, None, 0, weight.rows, dtype)


def _decode(
    weight: CodedWeight, numbers: torch.Tensor | None, first: int, count: int, dtype: torch.dtype
) -> torch.Tensor:
    shape, data = CodedShape.of(weight), weight.data
    out = torch.empty(count, weight.depth, dtype=dtype, device=data.device)
    if count:
        grid = (triton.cdiv(count, DECODED.columns), shape.num_tiles(DECODED.steps))
        decode_tile[grid](
            data, data if numbers is None else numbers, out, count, first, weight.rows, shape, numbers is not None,
            DECODED, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _linear(input: torch.Tensor, weight: CodedWeight, bias: torch.Tensor | None, deterministic: bool) -> torch.Tensor:
    if input.shape[-1] != weight.depth or input.dtype not in DTYPES:
        raise ConfigError(f"{input.dtype} of {tuple(input.shape)} cannot multiply coded weights of {weight.shape}.")
    rows = input.reshape(-1, weight.depth)
    out = torch.empty(len(rows), weight.rows, dtype=input.dtype, device=input.device)
    if len(rows) > FEW_ROWS and not deterministic:
        for part in _slices(weight, input.dtype):
            own = None if bias is None else bias[part]
            numbers = _decode(weight, None, part.start, part.stop - part.start, input.dtype)
            out[:, part] = torch.nn.functional.linear(rows, numbers, own)
        return out.view(*input.shape[:-1], weight.rows)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    for first in range(0, len(rows), FEW_ROWS):
        own = rows[first : first + FEW_ROWS]
        tile_rows = LEAST_ROWS if len(own) <= LEAST_ROWS and not deterministic else MORE_ROWS
        _multiply_few(own, weight, bias, out[first : first + FEW_ROWS], tile_rows)
    return out.view(*input.shape[:-1], weight.rows)


def _multiply_few(
    rows: torch.Tensor, weight: CodedWeight, bias: torch.Tensor | None, out: torch.Tensor, tile_rows: int
) -> None:
    shape, tile = CodedShape.of(weight), _tile(weight, tile_rows)
    splits = triton.cdiv(shape.num_tiles(tile.steps), tile.split_tiles)
    partial = torch.empty(splits, len(rows), weight.rows, device=out.device)
    multiply_few[(triton.cdiv(weight.rows, tile.columns), splits, triton.cdiv(len(rows), tile.rows))](
        rows, weight.data, partial, rows.stride(0), len(rows), weight.rows, shape, tile,
        num_warps=4, num_stages=1, enable_fp_fusion=False,
    )  # fmt: skip
    add_splits[(triton.cdiv(weight.rows, ADDED_COLUMNS), len(rows))](
        partial, out if bias is None else bias, out, len(rows), weight.rows, splits, bias is not None, ADDED_COLUMNS
    )


def _tile(weight: CodedWeight, rows: int) -> CodedTile:
    """Splits go by the weight alone, so that sums of a row have the same order in every batch."""
    columns, steps = 64, 32
    tiles = -(-weight.depth // (steps * STEP_DEPTH))
    splits = min(MOST_SPLITS, tiles, max(1, WANTED_PROGRAMS // -(-weight.rows // columns)))
    return CodedTile(rows, columns, steps, -(-tiles // splits))


def _slices(weight: CodedWeight, dtype: torch.dtype) -> Iterator[slice]:
    """Whole blocks of rows."""
    size = max(1, SLICE_NBYTES // (BLOCK_ROWS * weight.depth * dtype.itemsize)) * BLOCK_ROWS
    for first in range(0, weight.rows, size):
        yield slice(first, min(first + size, weight.rows))
