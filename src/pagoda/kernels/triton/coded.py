"""Layers whose weights are codes, on the device: few rows of input meet codes, many meet slices that were decoded.

Rows that are routed to experts meet codes however many they are. Knows coded weights, and sizes the launches. How codes
lie is for `coded_numbers.py`, and which rows meet which expert for `routing.py`. Input is not coded, as processors do
it: products are those with the numbers that weights stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import triton

from pagoda.errors import ConfigError
from pagoda.kernels.coded_sizes import BLOCK_ROWS, UNIT_DEPTH
from pagoda.kernels.coded_stack import CodedStack
from pagoda.kernels.coded_weight import CodedWeight, HeldCodes
from pagoda.kernels.layers import CodedLayer
from pagoda.kernels.native_calls import compiled
from pagoda.kernels.reference_layers import ReferenceLayers
from pagoda.kernels.triton.coded_numbers import add_splits, decode_tile, multiply_few, multiply_routed
from pagoda.kernels.triton.routing import Routing

# Rows of input that codes are read for; for more they are decoded first. Not measured.
FEW_ROWS = 64
# Of these a program takes so many, if there are no more, or else so many.
LEAST_ROWS, MORE_ROWS = 16, 32
# Of rows that meet an expert, if experts have more than the least on average. Not measured.
MANY_ROWS = 64
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

    @property
    def num_warps(self) -> int:
        """So that threads have registers for what they sum up and decode."""
        return 8 if self.rows > MORE_ROWS else 4


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
    def of(cls, weight: HeldCodes) -> CodedShape:
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
    """Tensors on the device, or on the CPU where Triton interprets. The host waits for none of them.

    If `deterministic`, rows meet codes however many they are, in programs of one kind.
    """

    codes_input = False

    def __init__(self, deterministic: bool = False) -> None:
        self._is_deterministic = deterministic

    def coded_linears(self, input: torch.Tensor, layers: Sequence[CodedLayer]) -> list[torch.Tensor]:
        return [_linear(input, weight, bias, self._is_deterministic) for weight, bias in layers]

    def coded_experts(
        self, input: torch.Tensor, weight: CodedStack, experts: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        _check(input, weight)
        if input.dim() != 2 or experts.dim() != 2 or len(experts) != len(input) or experts.is_floating_point():
            raise ConfigError(f"{experts.dtype} of {tuple(experts.shape)} names no experts of {tuple(input.shape)}.")
        out = input.new_empty(*experts.shape, weight.rows)
        if out.numel():
            tile = _routed_tile(weight, experts.numel(), self._is_deterministic)
            _multiply_routed(with_unit_stride(input), weight, experts, bias, out.flatten(0, 1), tile)
        return out

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
    _check(input, weight)
    rows = input.reshape(-1, weight.depth)
    out = torch.empty(len(rows), weight.rows, dtype=input.dtype, device=input.device)
    if len(rows) > FEW_ROWS and not deterministic:
        for part in _slices(weight, input.dtype):
            own = None if bias is None else bias[part]
            numbers = _decode(weight, None, part.start, part.stop - part.start, input.dtype)
            out[:, part] = torch.nn.functional.linear(rows, numbers, own)
        return out.view(*input.shape[:-1], weight.rows)
    rows = with_unit_stride(rows)
    for first in range(0, len(rows), FEW_ROWS):
        own = rows[first : first + FEW_ROWS]
        tile_rows = LEAST_ROWS if len(own) <= LEAST_ROWS and not deterministic else MORE_ROWS
        _multiply_few(own, weight, bias, out[first : first + FEW_ROWS], tile_rows)
    return out.view(*input.shape[:-1], weight.rows)


def _check(input: torch.Tensor, weight: CodedWeight | CodedStack) -> None:
    if input.shape[-1] != weight.depth or input.dtype not in DTYPES:
        raise ConfigError(f"{input.dtype} of {tuple(input.shape)} cannot multiply coded weights of {weight.shape}.")


def with_unit_stride(rows: torch.Tensor) -> torch.Tensor:
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _multiply_few(
    rows: torch.Tensor, weight: CodedWeight, bias: torch.Tensor | None, out: torch.Tensor, tile_rows: int
) -> None:
    shape, tile = CodedShape.of(weight), _tile(weight, tile_rows)

    def launch(target: torch.Tensor, columns: int, splits: int) -> None:
        multiply_few[(triton.cdiv(len(rows), tile.rows), columns, splits)](
            rows, weight.data, rows if bias is None else bias, target, rows.stride(0), len(rows), weight.rows,
            bias is not None, shape, tile, num_warps=tile.num_warps, num_stages=1, enable_fp_fusion=False,
        )  # fmt: skip

    _in_splits(launch, out, shape, tile)


def _multiply_routed(
    rows: torch.Tensor,
    weight: CodedStack,
    experts: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    tile: CodedTile,
) -> None:
    shape, routing = CodedShape.of(weight), Routing.of(experts, weight.count, tile.rows)
    biases = rows if bias is None else bias.contiguous()

    def launch(target: torch.Tensor, columns: int, splits: int) -> None:
        multiply_routed[(len(routing.owners), columns, splits)](
            rows, weight.data, biases, target, routing.pairs, routing.owners, rows.stride(0), experts.shape[1],
            weight.data.stride(0), len(out), weight.count, weight.rows, bias is not None, shape, tile,
            num_warps=tile.num_warps, num_stages=1, enable_fp_fusion=False,
        )  # fmt: skip

    _in_splits(launch, out, shape, tile)


def _in_splits(
    launch: Callable[[torch.Tensor, int, int], None], out: torch.Tensor, shape: CodedShape, tile: CodedTile
) -> None:
    """Let `launch` write `out` [rows, columns], with so many programs for columns and for splits.

    More splits than one go to [splits, rows, columns] in fp32, and are added up.
    """
    columns = triton.cdiv(out.shape[1], tile.columns)
    splits = triton.cdiv(shape.num_tiles(tile.steps), tile.split_tiles)
    if splits == 1:
        launch(out, columns, splits)
        return
    partial = torch.empty(splits, *out.shape, device=out.device)
    launch(partial, columns, splits)
    add_splits[(triton.cdiv(out.shape[1], ADDED_COLUMNS), len(out))](partial, out, *out.shape, splits, ADDED_COLUMNS)


def _tile(weight: HeldCodes, rows: int) -> CodedTile:
    """Splits go by the weight alone, so that sums of a row have the same order in every batch."""
    columns, steps = 64, 32
    tiles = -(-weight.depth // (steps * STEP_DEPTH))
    splits = min(MOST_SPLITS, tiles, max(1, WANTED_PROGRAMS // -(-weight.rows // columns)))
    return CodedTile(rows, columns, steps, -(-tiles // splits))


def _routed_tile(weight: CodedStack, num_pairs: int, deterministic: bool) -> CodedTile:
    """Depth is split for few pairs only: many have programs enough, and would have as many sums for each split."""
    rows = MORE_ROWS
    if not deterministic:
        rows = LEAST_ROWS if num_pairs <= LEAST_ROWS * weight.count else MANY_ROWS
    tile = _tile(weight, rows)
    is_split = num_pairs <= FEW_ROWS and not deterministic
    return tile if is_split else replace(tile, split_tiles=CodedShape.of(weight).num_tiles(tile.steps))


def _slices(weight: CodedWeight, dtype: torch.dtype) -> Iterator[slice]:
    """Whole blocks of rows."""
    size = max(1, SLICE_NBYTES // (BLOCK_ROWS * weight.depth * dtype.itemsize)) * BLOCK_ROWS
    for first in range(0, weight.rows, size):
        yield slice(first, min(first + size, weight.rows))
