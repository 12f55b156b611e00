"""The sizes that kernels are launched with, by card and by what they read: measured once, never at run time.

`scripts/gpu_check.py --sweep` measures what to write here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pagoda.kernels.triton.shapes import MIN_DOT, PlaneShape, Tile

# Sequences of up to so many new rows are computed split by split: decode steps and drafts.
FEW_ROWS = 16
# Splits of a row that are added up at a time at most, and how many numbers they may have.
FEW_REDUCED, MANY_REDUCED = 64, 16
REDUCED_NUMBERS = 8192
# Rows of a program that stores, and how many numbers they may have.
STORED_ROWS, STORED_NUMBERS = 16, 2048


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Tiles of one kind of card, in the regimes of few rows and of many: see FEW_ROWS.

    A program reads one split at most: of few rows `head_split_tokens` for each KV head, within `few_split_tokens`, so
    that few heads make more programs. Rows of many are computed part after part if their results before they are added
    up take more than `partial_nbytes`.
    """

    few: Tile
    few_codes: Tile
    few_latents: Tile
    many: Tile
    many_codes: Tile
    many_biased: Tile  # which read a number more for each score
    many_latents: Tile
    exact: Tile  # products in fp32
    head_split_tokens: int
    few_split_tokens: tuple[int, int]
    many_split_tokens: int
    partial_nbytes: int
    programs_per_processor: int

    def split_tokens(self, num_kv_heads: int, is_few: bool) -> int:
        if not is_few:
            return self.many_split_tokens
        least, most = self.few_split_tokens
        return min(max(self.head_split_tokens * num_kv_heads, least), most)


HOPPER = Tiles(
    few=Tile(rows=16, tokens=32, num_warps=2, num_stages=3),
    few_codes=Tile(rows=16, tokens=64, num_warps=2, num_stages=2),
    few_latents=Tile(rows=64, tokens=32, num_warps=8, num_stages=2),
    many=Tile(rows=256, tokens=64, num_warps=8, num_stages=3),
    many_codes=Tile(rows=256, tokens=64, num_warps=8, num_stages=2),
    many_biased=Tile(rows=256, tokens=32, num_warps=8, num_stages=2),
    many_latents=Tile(rows=64, tokens=32, num_warps=8, num_stages=2),
    exact=Tile(rows=16, tokens=32, num_warps=4, num_stages=1),
    head_split_tokens=64,
    few_split_tokens=(128, 512),
    many_split_tokens=8192,
    partial_nbytes=1 << 28,
    programs_per_processor=16,
)


def fitting(tile: Tile, keys: PlaneShape, values: PlaneShape) -> Tile:
    """The tile, or one with so many more tokens that words of values are as many as products take."""
    words = 1 if keys.value_width else values.count
    return replace(tile, tokens=max(tile.tokens, MIN_DOT * words))


def split_pages(split_tokens: int, page_tokens: int, tile: Tile) -> int:
    """Whole pages, and whole tiles, of about `split_tokens`."""
    unit = math.lcm(page_tokens, tile.tokens)
    return max(1, split_tokens // unit) * unit // page_tokens


def reduced_splits(width: int, is_few: bool) -> int:
    """How many splits of rows of `width` channels, a power of two, are added up at a time."""
    return min(FEW_REDUCED if is_few else MANY_REDUCED, max(1, REDUCED_NUMBERS // width))


def stored_rows(width: int) -> int:
    return min(STORED_ROWS, max(1, STORED_NUMBERS // width))
