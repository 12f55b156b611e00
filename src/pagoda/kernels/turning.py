"""Turns keys that are in pages to other positions: what they are stored as is decoded, turned and coded again."""

from __future__ import annotations

import torch

from pagoda.formats.rotation import PairRotation
from pagoda.kernels.base import LayerPages


def turn_keys(layer: LayerPages, rotation: PairRotation, distance: int, target: torch.Tensor) -> None:
    """Turn the keys in `target`, uint8 [pages, page_nbytes], as if they stood so many positions later."""
    slot, (count, _) = layer.key, target.shape
    data = target[:, slot.offset : slot.offset + slot.nbytes]
    # Channels that turn together are scaled alike, so what was taken off as a factor may stay off.
    keys = layer.format.decode(data, slot.plane).transpose(1, 2).flatten(0, 1)  # [tokens, heads, width]
    size = layer.geometry.page_tokens
    tokens = torch.arange(count * size)
    turned = rotation.turned(keys, torch.full((len(tokens),), distance))
    layer.format.write(data, slot.plane, tokens // size, tokens % size, turned)
