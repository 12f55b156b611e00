"""One layer's share of a page pool as kernels get it: the same for all layers that are alike.

Kernels are compiled for where planes lie, so pages begin here with the layer; which layer it is they learn at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from pagoda.errors import ConfigError
from pagoda.formats.constants import KeyConstants
from pagoda.formats.page import PlaneSlot
from pagoda.kernels.base import LayerPages
from pagoda.kernels.triton.planes import PlaneShape, plane_shape


@dataclass(frozen=True, eq=False)
class OwnPages:
    """`pages` begin with the layer, which is `number` of `num_layers`; these lie `layer_nbytes` apart, 0 if unlike."""

    pages: torch.Tensor
    keys: PlaneShape
    values: PlaneShape
    num_kv_heads: int
    constants: KeyConstants | None
    number: int
    num_layers: int
    layer_nbytes: int

    @classmethod
    def of(cls, layer: LayerPages) -> Self:
        """Raises ConfigError for pages that kernels do not read."""
        _check(layer.pages)
        geometry = layer.geometry
        keys, values = plane_shapes(layer)
        return cls(
            pages=layer.pages[:, layer.key.offset :],
            keys=keys,
            values=values,
            num_kv_heads=layer.key.plane.num_heads,
            constants=layer.constants,
            number=layer.layer,
            num_layers=len(geometry.slots),
            layer_nbytes=geometry.layer_nbytes or 0,
        )


def plane_shapes(layer: LayerPages) -> tuple[PlaneShape, PlaneShape]:
    """Of keys and of values, in pages that begin with the layer. ConfigError if kernels do not read them."""
    start, page_tokens = layer.key.offset, layer.geometry.page_tokens
    slots = (PlaneSlot(each.plane, each.offset - start, each.nbytes) for each in (layer.key, layer.value))
    keys, values = (plane_shape(slot, layer.format, page_tokens) for slot in slots)
    return keys, values


def _check(pages: torch.Tensor) -> None:
    if pages.dtype is not torch.uint8 or pages.stride(1) != 1 or pages.stride(0) % 4 or pages.data_ptr() % 4:
        raise ConfigError(
            f"Pages are {pages.dtype} {list(pages.shape)} with strides {pages.stride()}; Triton kernels take aligned "
            "runs of uint8."
        )
