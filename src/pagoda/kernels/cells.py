"""Where the tokens of a KV head lie in a sequence whose first pages are packed: the definition, in plain torch.

Knows `GroupView.cell_starts`. Does not know what the bytes of a cell mean: they are the same in all layers.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pagoda.kernels.base import GroupView, LayerPages


def cells_of(layer: LayerPages, pages: torch.Tensor) -> list[torch.Tensor]:
    """The bytes of every cell in `pages` [pages, page_nbytes], plane by plane: [pages, layers, KV heads, bytes]."""
    geometry = layer.geometry
    assert geometry.layer_nbytes is not None, "layers are alike"
    layers = pages[:, : geometry.page_nbytes].unflatten(1, (-1, geometry.layer_nbytes))
    return [
        layers[:, :, slot.offset : slot.offset + slot.nbytes].unflatten(2, (slot.plane.num_heads, -1))
        for slot in geometry.slots[0]
    ]


def places_of(layer: LayerPages, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of cells of packed pages: which of these each is in, and the layer and the KV head whose share that would be."""
    heads, num_layers = layer.key.plane.num_heads, len(layer.geometry.slots)
    return numbers // (num_layers * heads), numbers // heads % num_layers, numbers % heads


def is_packed(view: GroupView, sequence: int) -> bool:
    """Whether sequence `sequence` begins with packed pages."""
    return view.cell_starts is not None and bool(view.cell_starts[sequence, -1])


def unpacked(layer: LayerPages, view: GroupView, sequence: int, head: int) -> tuple[LayerPages, int]:
    """What KV head `head` has of a packed sequence, in the order of its tokens, in other pages; and how many tokens.

    What other heads and layers have in these pages is anything.
    """
    assert view.cell_starts is not None
    index, size = layer.layer * layer.key.plane.num_heads + head, layer.geometry.page_tokens
    starts = view.cell_starts[sequence].tolist()
    num_packed = -(-starts[-1] // (len(starts) - 1))
    table = view.page_indices[view.page_starts[sequence] : view.page_starts[sequence + 1]].long()
    pages, layers, heads = places_of(layer, torch.arange(starts[index], starts[index + 1]))
    own = table[num_packed:]
    pages = torch.cat((table[pages], own))
    layers = torch.cat((layers, torch.full_like(own, layer.layer)))
    heads = torch.cat((heads, torch.full_like(own, head)))
    ordered = torch.zeros(len(pages), layer.pages.shape[1], dtype=torch.uint8)
    for source, target in zip(cells_of(layer, layer.pages), cells_of(layer, ordered), strict=True):
        target[:, layer.layer, head] = source[pages, layers, heads]
    num_tokens = int(view.context_lengths[sequence]) + (starts[index + 1] - starts[index] - num_packed) * size
    return replace(layer, pages=ordered), num_tokens
