"""How the planes of a layer group lie in a page: the one place where bytes per page are counted.

A page is one contiguous run of bytes: layer by layer, plane by plane, each plane starting on a cache line. Knows
offsets and sizes; does not know which pages exist or who uses them.
"""

from dataclasses import dataclass
from functools import cached_property

from pagoda.errors import ConfigError
from pagoda.formats.base import Format
from pagoda.layouts.base import Plane
from pagoda.layouts.spec import CacheSpec, LayerGroup, Reach

ALIGNMENT_NBYTES = 64
PAGE_TOKENS_MULTIPLE = 16
# Summaries of keys have pairs of whole vectors of numbers, of every instruction set.
SUMMARY_MULTIPLE = 32
SUMMARY_NUMBER_NBYTES = 2


@dataclass(frozen=True)
class PlaneSlot:
    """The bytes of one plane of one layer inside every page of its group."""

    plane: Plane
    offset: int
    nbytes: int


@dataclass(frozen=True)
class PageGeometry:
    """The bytes of a page of `page_tokens` tokens in `format`: `slots[layer][plane]` for the layers of `group`.

    `others` names the layers that are kept in another format.
    """

    group: LayerGroup
    format: Format
    page_tokens: int
    others: tuple[tuple[int, Format], ...] = ()

    def __post_init__(self) -> None:
        if self.page_tokens <= 0 or self.page_tokens % PAGE_TOKENS_MULTIPLE:
            raise ConfigError(
                f"block_size is {self.page_tokens}; use a positive multiple of {PAGE_TOKENS_MULTIPLE} tokens."
            )
        for layer, layout in enumerate(self.group.layouts):
            format = self.format_of(layer)
            for obstacle in filter(None, map(format.obstacle, layout.planes)):
                raise ConfigError(
                    f"The cache of this model cannot be kept in {format.name}: {obstacle}. Choose another "
                    "kv_cache_dtype; fp32 takes every model."
                )

    def format_of(self, layer: int) -> Format:
        return dict(self.others).get(layer, self.format)

    @property
    def format_name(self) -> str:
        """What users are told: the format of most layers, and how many have another."""
        return f"{self.format.name}, {len(self.others)} layers not" if self.others else self.format.name

    @cached_property
    def slots(self) -> tuple[tuple[PlaneSlot, ...], ...]:
        offset = 0
        layers = []
        for layer, layout in enumerate(self.group.layouts):
            format, planes = self.format_of(layer), []
            for plane in layout.planes:
                nbytes = format.plane_nbytes(plane, self.page_tokens)
                planes.append(PlaneSlot(plane, offset, nbytes))
                offset += aligned(nbytes)
            layers.append(tuple(planes))
        return tuple(layers)

    @cached_property
    def page_nbytes(self) -> int:
        return sum(aligned(slot.nbytes) for planes in self.slots for slot in planes)

    @cached_property
    def layer_nbytes(self) -> int | None:
        """How far the planes of a layer lie behind those of the layer before it; None if layers are not alike."""
        if self.others or any(layout.planes != self.group.layouts[0].planes for layout in self.group.layouts):
            return None
        return self.page_nbytes // len(self.slots)

    @property
    def summary_nbytes(self) -> int:
        """What summaries take of a page beside it, and a byte for each layer; 0 where all of it is always read."""
        keys = [planes[0].plane for planes in self.slots]
        if self.group.reach is not Reach.FULL or any(plane.value_width for plane in keys):
            return 0
        return sum(plane.num_heads * summary_numbers(plane) * SUMMARY_NUMBER_NBYTES + 1 for plane in keys)

    @property
    def nbytes_per_token(self) -> float:
        return self.page_nbytes / self.page_tokens


def page_geometries(spec: CacheSpec, format: Format, page_tokens: int) -> tuple[PageGeometry, ...]:
    """The geometry of every group of a model."""
    return tuple(PageGeometry(group, format, page_tokens) for group in spec.groups)


def summary_numbers(key: Plane) -> int:
    """How many numbers tell what the keys of a page reach, for each KV head."""
    return -(-2 * key.width // SUMMARY_MULTIPLE) * SUMMARY_MULTIPLE


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to whole cache lines."""
    return -(-nbytes // ALIGNMENT_NBYTES) * ALIGNMENT_NBYTES
