"""What a kernel is compiled for: the planes of a layer (planes.py), the rule of attention, tiles.

Plain frozen numbers, worked out here so that kernels hold no arithmetic of sizes. What the GPU demands of them and the
interpreter forgives is asserted here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pagoda.formats.page import ALIGNMENT_NBYTES
from pagoda.kernels.triton.planes import MIN_DOT, RUN_TOKENS, PlaneShape, power_of_two

# Of these so many surely begin at a multiple of their number, counted from the pool in words, wherever a cell lies.
CELL_RUN_TOKENS = 4
# Of lifts and turns: cosines and sines of up to 16 pairs.
PAIR_ROWS = 32
# Of shared memory, what is not counted one by one: scales, levels, maxima and sums of rows between warps.
SPARE_NBYTES = 8192
LOG2_E = 1 / math.log(2)


@dataclass(frozen=True)
class Tile:
    """`rows` of queries, times the heads that share a KV head, meet `tokens` at a time.

    A thread has `max_registers`, if that is given, so that more programs run beside each other.
    """

    rows: int
    tokens: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    def __post_init__(self) -> None:
        for size in (self.rows, self.tokens, self.num_warps):
            assert size == power_of_two(size), f"{self} has a size that is no power of two"
        assert min(self.rows, self.tokens) >= MIN_DOT, f"{self} is smaller than a product on tensor cores"


@dataclass(frozen=True)
class Load:
    """What a tile is to hold: numbers of `itemsize` bytes are multiplied."""

    keys: PlaneShape
    values: PlaneShape
    itemsize: int
    has_constants: bool
    has_biases: bool

    @property
    def has_latents(self) -> bool:
        return self.keys.value_width > 0

    @property
    def least_tokens(self) -> int:
        """So many that words of values are as many as products take."""
        return MIN_DOT * (1 if self.has_latents else self.values.count)

    @property
    def value_channels(self) -> int:
        return self.keys.channels if self.has_latents else self.values.block_lanes * self.values.halves

    def shared_nbytes(self, tile: Tile) -> int:
        """No less than a program takes: words that are on their way, and what threads hand to each other."""
        channels = self.keys.channels
        planes = (self.keys,) if self.has_latents else (self.keys, self.values)
        token_nbytes = sum(each.token_nbytes for each in planes)
        handed = tile.rows * (channels + tile.tokens) * self.itemsize
        handed += tile.tokens * channels * self.itemsize if self.has_latents else 0
        handed += 2 * (tile.rows + tile.tokens) * PAIR_ROWS * 4 if self.has_constants else 0
        handed += tile.rows * tile.tokens * 4 if self.has_biases else 0
        # Codes of int4 are moved between threads once more, and twice if they become fp32.
        moved_nbytes = sum(each.token_nbytes for each in planes if each.is_int4) * self.itemsize // 2
        return tile.tokens * (tile.num_stages * token_nbytes + moved_nbytes) + handed + SPARE_NBYTES


@dataclass(frozen=True)
class RuleShape:
    """How scores are made."""

    reach: str
    span: int
    scale: float
    soft_cap: float
    has_slopes: bool
    num_biases: int
    has_sinks: bool
    sink_tokens: int

    @property
    def multiplier(self) -> float:
        """What turns scores as kernels have them into units of log 2."""
        return self.scale * LOG2_E if self.is_plain else 1.0

    @property
    def is_plain(self) -> bool:
        """Whether scores are products times a number above zero, which is then left to the exponential."""
        return self.scale > 0 and not (self.soft_cap or self.has_slopes or self.num_biases)


@dataclass(frozen=True)
class AttendShape:
    """Everything that a kernel of attention is compiled for. Scores are in units of log 2.

    has_scales: whether keys are kept divided by scales of their channels
    has_places: whether new rows need not follow one another
    has_choice: whether every KV head has a table of its own, of pages that a row chose
    num_layers: those of a group whose pages may be packed, in which layers lie `layer_nbytes` apart; else none
    has_ptx: whether it may hold instructions of NVIDIA's
    """

    keys: PlaneShape
    values: PlaneShape
    num_kv_heads: int
    group: int
    page_nbytes: int
    has_scales: bool
    num_pairs: int  # of what keys have in common
    turn_pages: int
    has_places: bool
    has_choice: bool
    num_layers: int
    layer_nbytes: int
    rule: RuleShape
    tile: Tile
    split_pages: int
    key_dot: Any
    value_dot: Any
    has_ptx: bool

    def __post_init__(self) -> None:
        assert self.split_tokens % self.tile.tokens == 0, "tiles must end where splits do"
        assert self.page_nbytes % ALIGNMENT_NBYTES == 0
        assert self.layer_nbytes % RUN_TOKENS == 0
        words = self.tile.tokens if self.has_latents else self.tile.tokens // self.values.count
        assert words >= MIN_DOT, f"{self.tile} has fewer words of values than a product on tensor cores"

    @property
    def has_latents(self) -> bool:
        return self.keys.value_width > 0

    @property
    def heads(self) -> int:
        return self.num_kv_heads * self.group

    @property
    def value_width(self) -> int:
        return self.keys.value_width or self.values.width

    @property
    def load(self) -> Load:
        itemsize = 4 if self.key_dot.is_fp32() or self.value_dot.is_fp32() else 2
        return Load(self.keys, self.values, itemsize, self.has_constants, self.rule.num_biases > 0)

    @property
    def split_tokens(self) -> int:
        return self.split_pages * self.keys.page_tokens

    @property
    def has_cells(self) -> bool:
        return self.num_layers > 0

    @property
    def run_tokens(self) -> int:
        """Of words of keys so many lie in a run that begins at a multiple of that, from the start of a pool."""
        return CELL_RUN_TOKENS if self.has_cells else RUN_TOKENS

    @property
    def sees_all(self) -> bool:
        """Whether rows may see tokens that lie behind them."""
        return self.rule.reach == "encoder" or self.has_places

    @property
    def has_edge(self) -> bool:
        """Whether tiles may hold tokens before the reach of a row, so that all of them are masked."""
        return self.rule.reach in ("sliding", "chunked")

    @property
    def asks_ahead(self) -> bool:
        """Whether scales are asked for a tile before they are needed: of few rows, which leave room in registers."""
        return self.tile.rows == MIN_DOT

    @property
    def num_parts(self) -> int:
        return len(self.keys.parts)

    @property
    def reduced_width(self) -> int:
        """Channels of a whole row of results: a power of two."""
        return power_of_two(self.value_width)

    @property
    def has_constants(self) -> bool:
        return self.num_pairs > 0

    @property
    def exact_dot(self) -> str:
        """How products of fp32 are taken that need all of its digits."""
        return "tf32x3" if self.has_ptx else "ieee"

    @property
    def scales_queries(self) -> bool:
        """Whether rows of queries are divided by powers of two, so that they are numbers in fp16."""
        return self.keys.is_coded and not self.key_dot.is_fp32()

    @property
    def folds_units(self) -> bool:
        """Whether what queries are divided by is left to the exponential, as all that scores are multiplied by."""
        return self.scales_queries and self.rule.is_plain and not self.has_constants

    @property
    def scales_weights(self) -> bool:
        """Whether weights times scales of values are kept below 2, so that they are numbers in fp16."""
        return self.values.is_coded and not self.value_dot.is_fp32()

    @property
    def turns_results(self) -> bool:
        """Whether results need more than division once all splits are summed."""
        return self.values.rotated_channels > 1 or (self.has_latents and self.has_scales)

    @property
    def turns_queries(self) -> bool:
        return self.keys.rotated_channels > 1 or self.has_scales
