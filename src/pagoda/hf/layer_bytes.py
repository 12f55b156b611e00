"""The bytes of one layer in the pages: keys and values go in as transformers has them, and come back as they are kept.

Knows formats and where tokens lie. Does not know who asks, nor which tokens they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from pagoda.cache.groups.table import PageTable
from pagoda.errors import NonFiniteCacheError, UnsupportedModelError
from pagoda.formats.base import Format
from pagoda.formats.page import PageGeometry, PlaneSlot
from pagoda.layouts.base import Plane


@dataclass(frozen=True, eq=False)
class Places:
    """Where the new tokens of a call go: from `rows` and `columns` of it to `offsets` of `pages`, int64 [tokens]."""

    rows: torch.Tensor
    columns: torch.Tensor
    pages: torch.Tensor
    offsets: torch.Tensor

    @cached_property
    def used(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The pages, each once, and which of these every token is in."""
        pages, index = self.pages.unique(return_inverse=True)
        return pages, index


@dataclass(frozen=True)
class Span:
    """The last `num_columns` before column `stop` of a batch whose rows begin after `paddings`."""

    stop: int
    num_columns: int
    paddings: tuple[int, ...]


class LayerBytes:
    """Layer number `layer` of `geometry` in `pool`, uint8 [pages, page_nbytes]. Keys and values are a pair [rows,
    heads, tokens, width]; where a layer keeps latents they are the latent and its rotary key, which lie in one plane.
    """

    def __init__(self, pool: torch.Tensor, geometry: PageGeometry, layer: int) -> None:
        self._format = geometry.format_of(layer)
        self._slots = geometry.slots[layer]
        self._page_tokens = geometry.page_tokens
        self._data = [pool[:, slot.offset : slot.offset + slot.nbytes] for slot in self._slots]

    def write(self, places: Places, pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new tokens; `pair` as whoever hits these pages will read it."""
        planes = self._joined(pair)
        kept = [self._write(places, *each) for each in zip(planes, self._slots, self._data, strict=True)]
        return self._split(kept)

    def read(
        self, span: Span, tables: Sequence[PageTable], like: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is kept of columns, with the types and devices of `like`; zero where tables have nothing."""
        dense = [
            plane.new_zeros(len(tables), plane.shape[1], span.num_columns, plane.shape[-1])
            for plane in self._joined(like)
        ]
        for row, (table, padding) in enumerate(zip(tables, span.paddings, strict=True)):
            first = max(span.stop - span.num_columns - padding, table.num_dropped * self._page_tokens, 0)
            stop = span.stop - padding
            if first < stop:
                for plane, slot, data in zip(dense, self._slots, self._data, strict=True):
                    plane[row, :, first - stop :] = self._tokens(slot, data, table, first, stop).to(plane)
        return self._split(dense)

    def _write(self, places: Places, numbers: torch.Tensor, slot: PlaneSlot, data: torch.Tensor) -> torch.Tensor:
        new = numbers[places.rows, :, places.columns].to(data.device)  # [tokens, heads, width]
        if not new.isfinite().all():
            raise NonFiniteCacheError("The model produced a key or value of NaN or infinity; nothing of it is kept.")
        self._format.write(data, slot.plane, places.pages, places.offsets, new)
        if _keeps_all(self._format, slot.plane, numbers.dtype):
            return numbers
        used, index = places.used
        read = numbers.clone()
        kept = self._format.decode(data[used], slot.plane)[index, :, places.offsets]
        read[places.rows, :, places.columns] = kept.to(read)
        return read

    def _tokens(self, slot: PlaneSlot, data: torch.Tensor, table: PageTable, first: int, stop: int) -> torch.Tensor:
        """Tokens of one sequence: fp32 [heads, tokens, width]."""
        size = self._page_tokens
        before = first // size * size
        pages = torch.tensor(table.pages[first // size : -(-stop // size)], dtype=torch.int64)
        kept = self._format.decode(data[pages], slot.plane).transpose(0, 1).flatten(1, 2)
        return kept[:, first - before : stop - before]

    def _joined(self, pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        planes = pair if len(self._slots) == 2 else (torch.cat(pair, dim=-1),)
        for plane, slot in zip(planes, self._slots, strict=True):
            if (plane.shape[1], plane.shape[-1]) != (slot.plane.num_heads, slot.plane.width):
                raise UnsupportedModelError(
                    f"A layer caches {plane.shape[1]} {slot.plane.name} heads of width {plane.shape[-1]}, and when the "
                    f"cache was made it was found to have {slot.plane.num_heads} of {slot.plane.width}."
                )
        return planes

    def _split(self, planes: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        if len(planes) == 1:
            latent_width = self._slots[0].plane.value_width
            return planes[0][..., :latent_width], planes[0][..., latent_width:]
        key, value = planes
        return key, value


def _keeps_all(format: Format, plane: Plane, dtype: torch.dtype) -> bool:
    """Whether numbers of this type come back as they are."""
    format = format.of(plane)
    return not format.has_codes and format.model_dtype() in (dtype, torch.float32)
