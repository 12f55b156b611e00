"""What a kernel is compiled for: how the planes of a layer are read, the rule of attention, tiles.

Plain frozen numbers, worked out here so that kernels hold no arithmetic of sizes. What the GPU demands of them and the
interpreter forgives is asserted here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pagoda.errors import ConfigError
from pagoda.formats.base import Format
from pagoda.formats.int4 import INT4_PLAIN
from pagoda.formats.page import ALIGNMENT_NBYTES, PlaneSlot
from pagoda.formats.plain import BF16, FP16, FP32
from pagoda.formats.rotated import INT4, INT4_ROTATED
from pagoda.formats.scaled import FP8_E4M3, FP8_E5M2, INT8
from pagoda.layouts.base import Axis

WORD_NBYTES = 4
# The least size of each side of a product on tensor cores.
MIN_DOT = 16
# Tokens that surely lie in one page, side by side.
RUN_TOKENS = 16
# Of these so many surely begin at a multiple of their number, counted from the pool in words, wherever a cell lies.
CELL_RUN_TOKENS = 4
ENCODINGS: dict[Format, str] = {
    FP32: "fp32",
    FP16: "fp16",
    BF16: "bf16",
    INT8: "int8",
    FP8_E4M3: "fp8_e4m3",
    FP8_E5M2: "fp8_e5m2",
    INT4: "int4",
    INT4_ROTATED: "int4",
    INT4_PLAIN: "int4",
}
LARGEST: dict[Format, float] = {each: each.largest for each in (INT8, FP8_E4M3, FP8_E5M2)}
WORD_COUNTS = {"fp32": 1, "fp16": 2, "bf16": 2}
CODE_COUNT = 4
# Of lifts and turns: cosines and sines of up to 16 pairs.
PAIR_ROWS = 32
# Of shared memory, what is not counted one by one: scales, levels, maxima and sums of rows between warps.
SPARE_NBYTES = 8192
# The bits of fp8_e4m3 are taken for those of fp16, whose exponents are eight more.
E4M3_FACTOR = 256.0
LOG2_E = 1 / math.log(2)


@dataclass(frozen=True)
class Part:
    """Rows of words of a plane of keys that are read as one tile; `rows` is a power of two, some may not exist."""

    first: int
    rows: int


@dataclass(frozen=True)
class PlaneShape:
    """How one plane lies in a page; sizes in bytes. A code of int4 is a byte of two channels, half a row apart."""

    offset: int
    head_nbytes: int
    width: int
    value_width: int
    page_tokens: int
    encoding: str
    group_channels: int
    rotated_channels: int
    largest: float

    @property
    def is_coded(self) -> bool:
        return self.encoding not in WORD_COUNTS

    @property
    def is_int4(self) -> bool:
        return self.encoding == "int4"

    @property
    def code_factor(self) -> float:
        """What kernels multiply numbers by that they have of codes."""
        return E4M3_FACTOR if self.encoding == "fp8_e4m3" else 1.0

    @property
    def count(self) -> int:
        """Numbers, or bytes of codes, in a word."""
        return WORD_COUNTS.get(self.encoding, CODE_COUNT)

    @property
    def lanes(self) -> int:
        """Numbers, or bytes of codes, that a token has."""
        return self.width // 2 if self.is_int4 else self.width

    @property
    def block_lanes(self) -> int:
        """`lanes` of a tile of values: a power of two."""
        return max(power_of_two(self.lanes), MIN_DOT)

    @property
    def halves(self) -> int:
        return 2 if self.is_int4 else 1

    @property
    def tiles(self) -> int:
        """Into how many tiles words are decoded: numbers that a word has."""
        return self.count * self.halves

    @property
    def channels(self) -> int:
        """Of a plane of keys: those that tiles hold, some of which may not exist."""
        return sum(part.rows for part in self.parts) * self.tiles

    @property
    def token_nbytes(self) -> int:
        """Of a token, what tiles read."""
        return self.block_lanes * WORD_NBYTES // self.count

    @property
    def word_rows(self) -> int:
        """Of a plane of keys: words that a token has."""
        return -(-self.lanes // self.count)

    @property
    def scales_offset(self) -> int:
        """From the start of a head."""
        return self.lanes * self.page_tokens

    @property
    def levels_offset(self) -> int:
        return self.scales_offset + 2 * self.page_tokens

    @property
    def half_groups(self) -> int:
        """Groups of int4 in half a row; one also if both halves are in the same."""
        return 1 if self.group_channels == self.width else -(-self.lanes // self.group_channels)

    @property
    def num_groups(self) -> int:
        return 1 if self.group_channels == self.width else 2 * self.half_groups

    @property
    def second_half_group(self) -> int:
        """The first group of the second half."""
        return 0 if self.num_groups == 1 else self.half_groups

    @property
    def page_slots(self) -> int:
        """Tokens of a page, and more, to a power of two."""
        return power_of_two(self.page_tokens)

    @property
    def row_width(self) -> int:
        """Channels of a row by itself, in their order: a power of two."""
        return power_of_two(self.width)

    @property
    def stages(self) -> int:
        """Sums and differences of a Hadamard transform."""
        return self.rotated_channels.bit_length() - 1

    @property
    def factor(self) -> float:
        return 1 / math.sqrt(self.rotated_channels)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Tiles that a plane of keys is read in: one, or two if that leaves fewer rows of words that do not exist."""
        rows = self.word_rows
        whole = max(power_of_two(rows), MIN_DOT)
        first = whole // 2
        rest = max(power_of_two(rows - first), MIN_DOT)
        if rows == whole or first < MIN_DOT or first + rest >= whole:
            return (Part(0, whole),)
        return (Part(0, first), Part(first, rest))

    def part_groups(self, index: int) -> int:
        """Groups of int4 in half a part."""
        return 1 if self.half_groups == 1 else self.parts[index].rows * self.count // self.group_channels

    def part_first_group(self, index: int) -> int:
        return 0 if self.half_groups == 1 else self.parts[index].first * self.count // self.group_channels

    @property
    def block_groups(self) -> int:
        """Groups of int4 in half a tile of values."""
        return 1 if self.half_groups == 1 else self.block_lanes // self.group_channels


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


def plane_shape(slot: PlaneSlot, format: Format, page_tokens: int) -> PlaneShape:
    """How kernels read a plane of `format`; ConfigError if they cannot."""
    inner = format.of(slot.plane)
    encoding = ENCODINGS.get(inner)
    if encoding is None:
        raise ConfigError(f"The Triton kernels do not read {format.name} pages; set PAGODA_KERNELS=reference.")
    plane = slot.plane
    shape = PlaneShape(
        offset=slot.offset,
        head_nbytes=slot.nbytes // plane.num_heads,
        width=plane.width,
        value_width=plane.value_width,
        page_tokens=page_tokens,
        encoding=encoding,
        group_channels=inner.group_channels(plane),
        rotated_channels=inner.rotated_channels(plane),
        largest=LARGEST.get(inner, 0.0),
    )
    assert_aligned(shape, is_key=plane.reduced is Axis.CHANNEL)
    return shape


def assert_aligned(shape: PlaneShape, is_key: bool) -> None:
    """What loads of whole words and runs of tokens rely on."""
    assert shape.page_tokens % RUN_TOKENS == 0
    assert shape.offset % WORD_NBYTES == 0 and shape.head_nbytes % RUN_TOKENS == 0
    assert shape.scales_offset % 2 == 0 or not shape.is_coded
    if is_key:
        for part in shape.parts:
            assert part.rows == power_of_two(part.rows) >= MIN_DOT
            if shape.is_int4 and shape.half_groups > 1:
                assert part.rows * shape.count % shape.group_channels == 0
                assert part.first * shape.count % shape.group_channels == 0
    else:
        assert shape.block_lanes == power_of_two(shape.block_lanes) >= MIN_DOT


def power_of_two(number: int) -> int:
    """`number` rounded up to a power of two."""
    return 1 << max(number - 1, 0).bit_length()
