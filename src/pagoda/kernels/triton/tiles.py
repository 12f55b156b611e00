"""The sizes that kernels are launched with, by card and by what they read: measured once, never at run time.

`scripts/gpu_check.py --sweep` measures what to write here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pagoda.kernels.triton.planes import MIN_DOT
from pagoda.kernels.triton.shapes import Load, Tile

# Sequences of up to so many new rows are computed split by split: decode steps and drafts.
FEW_ROWS = 16
# Splits of a row that are added up at a time at most, and how many numbers they may have.
FEW_REDUCED, MANY_REDUCED = 64, 16
REDUCED_NUMBERS = 8192
# Rows of a program that stores, and how many numbers they may have.
STORED_ROWS, STORED_NUMBERS = 16, 2048
# Sums of values that the threads of a warp have in registers, fp32, so that others find room beside them.
WARP_SUMS = 32 * 128
# Channels of results that a warp has of few rows.
WARP_CHANNELS = 64


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Tiles of one kind of card, in the regimes of few rows and of many: see FEW_ROWS.

    A program reads one split at most: of few rows `head_split_tokens` for each KV head, within `few_split_tokens`, so
    that few heads make more programs. Rows of many are computed part after part if their results before they are added
    up take more than `partial_nbytes`, and tiles are smaller where they would not have their `shared_nbytes` of memory.
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
    shared_nbytes: int

    def split_tokens(self, num_kv_heads: int, is_few: bool) -> int:
        if not is_few:
            return self.many_split_tokens
        least, most = self.few_split_tokens
        return min(max(self.head_split_tokens * num_kv_heads, least), most)


HOPPER = Tiles(
    few=Tile(rows=16, tokens=32, num_warps=2, num_stages=3),
    few_codes=Tile(rows=16, tokens=64, num_warps=2, num_stages=2, max_registers=168),
    few_latents=Tile(rows=64, tokens=32, num_warps=8, num_stages=2),
    many=Tile(rows=256, tokens=64, num_warps=8, num_stages=3),
    many_codes=Tile(rows=256, tokens=64, num_warps=8, num_stages=2),
    many_biased=Tile(rows=256, tokens=32, num_warps=8, num_stages=2),
    many_latents=Tile(rows=64, tokens=32, num_warps=8, num_stages=2),
    exact=Tile(rows=16, tokens=32, num_warps=8, num_stages=1),
    head_split_tokens=64,
    few_split_tokens=(128, 512),
    many_split_tokens=8192,
    partial_nbytes=1 << 28,
    programs_per_processor=16,
    shared_nbytes=227 << 10,
)
# Of cards with less shared memory: not measured, but chosen so that few numbers find no room in registers.
AMPERE = replace(
    HOPPER,
    few_latents=Tile(rows=16, tokens=16, num_warps=4, num_stages=2),
    many=Tile(rows=128, tokens=64, num_warps=8, num_stages=2),
    many_codes=Tile(rows=64, tokens=64, num_warps=4, num_stages=2),
    many_biased=Tile(rows=128, tokens=32, num_warps=8, num_stages=2),
    many_latents=Tile(rows=16, tokens=16, num_warps=4, num_stages=2),
    shared_nbytes=99 << 10,
)


def for_card(shared_nbytes: int) -> Tiles:
    """Those of a card on which a program can have `shared_nbytes` of shared memory."""
    return replace(HOPPER if shared_nbytes >= HOPPER.shared_nbytes else AMPERE, shared_nbytes=shared_nbytes)


def fitting(tile: Tile, load: Load, shared_nbytes: int) -> Tile:
    """The tile, or one with so many more tokens as products take, and so much less else as there is room for.

    Few rows of wide heads have more warps, so that more of them run where shared memory bounds how many programs do.
    """
    tile = replace(tile, tokens=max(tile.tokens, load.least_tokens))
    while tile.rows == MIN_DOT and not load.has_latents and load.value_channels > WARP_CHANNELS * tile.num_warps:
        tile = replace(tile, num_warps=2 * tile.num_warps)
    while tile.rows > MIN_DOT and tile.rows * load.value_channels > WARP_SUMS * tile.num_warps:
        tile = replace(tile, rows=tile.rows // 2)
    while load.shared_nbytes(tile) > shared_nbytes:
        if tile.num_stages > 2:
            tile = replace(tile, num_stages=tile.num_stages - 1)
        elif tile.tokens > max(load.least_tokens, 2 * MIN_DOT):
            tile = replace(tile, tokens=tile.tokens // 2)
        elif tile.rows > MIN_DOT:
            tile = replace(tile, rows=tile.rows // 2)
        elif tile.tokens > load.least_tokens:
            tile = replace(tile, tokens=tile.tokens // 2)
        elif tile.num_stages > 1:
            tile = replace(tile, num_stages=1)
        else:
            break
    return tile


def split_pages(split_tokens: int, page_tokens: int, tile: Tile) -> int:
    """Whole pages, and whole tiles, of about `split_tokens`."""
    unit = math.lcm(page_tokens, tile.tokens)
    return max(1, split_tokens // unit) * unit // page_tokens


def reduced_splits(width: int, is_few: bool) -> int:
    """How many splits of rows of `width` channels, a power of two, are added up at a time."""
    return min(FEW_REDUCED if is_few else MANY_REDUCED, max(1, REDUCED_NUMBERS // width))


def stored_rows(width: int) -> int:
    return min(STORED_ROWS, max(1, STORED_NUMBERS // width))
