"""Products whose rows have the same bits however many there are: tiles of one size, and one order of sums.

Libraries choose tiles, and into how many parts depth is cut, by the number of rows; here both follow from the weight
alone. Knows strides and masks; which products go through here is `layers.py`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class ProductTile:
    """Rows, columns and depth that a program multiplies at a time."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


# Rows are as many as the matrix units of a Hopper take at least, and columns as few as keep all of it reading weights.
NARROW = ProductTile(rows=64, columns=32, depth=64, num_warps=4, num_stages=4)
WIDE = ProductTile(rows=64, columns=64, depth=64, num_warps=4, num_stages=4)
WIDE_COLUMNS = 8192
EXACT = ProductTile(rows=32, columns=32, depth=32, num_warps=4, num_stages=2)


def tile_of(weight: torch.Tensor, columns: int) -> ProductTile:
    """What a product with `weight` is computed with, for any number of rows."""
    if weight.dtype is torch.float32:
        return EXACT
    return WIDE if columns >= WIDE_COLUMNS else NARROW


def multiply(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`input` [rows, heads, depth] times `weight` [heads, depth, columns] in fp32, plus `bias` [columns].

    Both have one type, in which [rows, heads, columns] is returned. Any strides will do.
    """
    num_rows, num_heads, depth = input.shape
    columns = weight.shape[2]
    out = input.new_empty(num_rows, num_heads, columns)
    if not out.numel():
        return out
    tile = tile_of(weight, columns)
    grid = (triton.cdiv(num_rows, tile.rows), triton.cdiv(columns, tile.columns), num_heads)
    multiply_tile[grid](
        input, weight, weight if bias is None else bias, out, input.stride(), weight.stride(), num_rows, num_heads,
        depth, columns, bias is not None, tile.rows, tile.columns, tile.depth,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out


# One program is compiled for any number of rows.
@triton.jit(do_not_specialize=["num_rows"])
def multiply_tile(
    rows,
    weight,
    bias,
    out,
    row_strides,
    weight_strides,
    num_rows,
    num_heads,
    depth,
    columns,
    has_bias: tl.constexpr,
    row_block: tl.constexpr,
    column_block: tl.constexpr,
    depth_block: tl.constexpr,
):
    """A program takes a tile of rows and columns of a head through all of the depth, in order."""
    head = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * row_block + tl.arange(0, row_block)[:, None]
    column = tl.program_id(1).to(tl.int64) * column_block + tl.arange(0, column_block)[None, :]
    is_row, is_column = row < num_rows, column < columns
    left = rows + row * row_strides[0] + head * row_strides[1]
    right = weight + head * weight_strides[0] + column * weight_strides[2]
    sums = tl.zeros((row_block, column_block), dtype=tl.float32)
    for first in range(0, depth, depth_block):
        along, down = first + tl.arange(0, depth_block)[None, :], first + tl.arange(0, depth_block)[:, None]
        numbers = tl.load(left + along * row_strides[2], mask=is_row & (along < depth), other=0.0)
        factors = tl.load(right + down * weight_strides[1], mask=is_column & (down < depth), other=0.0)
        sums = tl.dot(numbers, factors, sums, input_precision="ieee")
    if has_bias:
        sums += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
    target = out + (row * num_heads + head) * columns + column
    tl.store(target, sums.to(out.dtype.element_ty), mask=is_row & is_column)
