"""The sizes that kernels are launched with, by card and by what they read: measured once, never at run time.

`scripts/gpu_check.py --sweep` measures what to write here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pagoda.kernels.triton.shapes import Tile

# Sequences of up to so many new rows are computed split by split: decode steps and drafts.
FEW_ROWS = 16
# What one program reads of a long context: less if few KV heads share the work.
FEW_SPLIT_TOKENS = (128, 512)
FEW_SPLIT_TOKENS_PER_HEAD = 64
MANY_SPLIT_TOKENS = 8192
# Splits of a row that are added up at a time.
FEW_REDUCED, MANY_REDUCED = 64, 16
# Room for partial results of many rows at most; more rows than that are computed one part after the other.
PARTIAL_NBYTES = 1 << 28
STORED_ROWS = 16


@dataclass(frozen=True)
class Tiles:
    """Tiles of one kind of card. `few` and `many` are regimes: see FEW_ROWS."""

    few: Tile
    few_codes: Tile
    few_latents: Tile
    many: Tile
    many_codes: Tile
    many_latents: Tile
    exact: Tile  # products in fp32
    programs_per_processor: int


HOPPER = Tiles(
    few=Tile(rows=16, tokens=64, num_warps=4, num_stages=3),
    few_codes=Tile(rows=16, tokens=64, num_warps=4, num_stages=3),
    few_latents=Tile(rows=16, tokens=32, num_warps=4, num_stages=2),
    many=Tile(rows=128, tokens=64, num_warps=8, num_stages=3),
    many_codes=Tile(rows=128, tokens=64, num_warps=8, num_stages=2),
    many_latents=Tile(rows=64, tokens=32, num_warps=8, num_stages=2),
    exact=Tile(rows=16, tokens=32, num_warps=4, num_stages=1),
    programs_per_processor=4,
)


def split_pages(split_tokens: int, page_tokens: int, tile: Tile) -> int:
    """Whole pages, and whole tiles, of about `split_tokens`."""
    unit = math.lcm(page_tokens, tile.tokens)
    return max(1, split_tokens // unit) * unit // page_tokens


def few_split_tokens(num_kv_heads: int) -> int:
    least, most = FEW_SPLIT_TOKENS
    return min(max(FEW_SPLIT_TOKENS_PER_HEAD * num_kv_heads, least), most)
