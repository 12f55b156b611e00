"""How a plane of a layer lies in a page, as kernels read it: words, parts and groups.

Plain frozen numbers. What the GPU demands of them and the interpreter forgives is asserted here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pagoda.errors import ConfigError
from pagoda.formats.base import Format
from pagoda.formats.int4 import INT4_PLAIN
from pagoda.formats.page import PlaneSlot
from pagoda.formats.plain import BF16, FP16, FP32
from pagoda.formats.rotated import INT4, INT4_ROTATED
from pagoda.formats.scaled import FP8_E4M3, FP8_E5M2, INT8
from pagoda.layouts.base import Axis

WORD_NBYTES = 4
# The least size of each side of a product on tensor cores.
MIN_DOT = 16
# Tokens that surely lie in one page, side by side.
RUN_TOKENS = 16
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
# The bits of fp8_e4m3 are taken for those of fp16, whose exponents are eight more.
E4M3_FACTOR = 256.0


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
