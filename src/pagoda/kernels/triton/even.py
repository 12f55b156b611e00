"""Attention whose rows have the same bits however many rows of their sequence are computed at a time.

Otherwise few rows of a sequence are computed in smaller parts than many are, which rounds sums elsewhere. Here all go
the way of many, by tiles that leave less idle when there is one row.
"""

from __future__ import annotations

from dataclasses import replace

from pagoda.kernels.triton.attention import TritonAttention
from pagoda.kernels.triton.shapes import AttendShape, Tile
from pagoda.kernels.triton.tiles import Tiles

# The least rows that the matrix units of a Hopper take, and splits that give one sequence some programs a KV head.
MANY = Tile(rows=64, tokens=64, num_warps=4, num_stages=2)
MANY_BIASED = Tile(rows=64, tokens=32, num_warps=4, num_stages=2)
SPLIT_TOKENS = 2048
# Of heads of so many channels, sums of so many rows would be half of what threads have, and much else found no room.
WIDE_CHANNELS = 256
WIDE = Tile(rows=32, tokens=32, num_warps=4, num_stages=2)


def even(table: Tiles) -> Tiles:
    """The tiles of a card, for rows that are few as well."""
    return replace(table, many=MANY, many_codes=MANY, many_biased=MANY_BIASED, many_split_tokens=SPLIT_TOKENS)


class EvenAttention(TritonAttention):
    """See `TritonAttention`."""

    most_few_rows = 0

    def _tile(self, shape: AttendShape, is_few: bool) -> Tile:
        tile = super()._tile(shape, is_few)
        is_wide = shape.load.value_channels >= WIDE_CHANNELS
        return WIDE if is_wide and tile in (MANY, MANY_BIASED) else tile
