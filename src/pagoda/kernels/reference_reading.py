"""Which pages a row reads that reads some only, in plain torch: the definition of what every other backend must choose.

Summaries are made anew for every row, from what is stored: nothing here can be out of date.
"""

from __future__ import annotations

import torch

from pagoda.formats.rotated import hadamard
from pagoda.kernels.base import AttentionRule, AttentionUse, GroupView, LayerPages, distance_obstacle
from pagoda.kernels.cells import is_packed

LOW_HALF = 0xFFFF
FIRST_AND_LAST = 2


def rows_in_part(layer: LayerPages, view: GroupView, sequence: int, rule: AttentionRule) -> int | None:
    """How many pages the rows of a sequence read in `layer`; None if they read all. Raises ValueError if they must."""
    if view.readings is None:
        return None
    most_pages, first_layer = view.readings[sequence].tolist()
    if not most_pages or layer.layer < first_layer:
        return None
    obstacle = distance_obstacle(AttentionUse(rule))
    if is_packed(view, sequence) or view.slots is not None or view.ancestors is not None:
        obstacle = "rows must follow one another, on pages that are not packed"
    if obstacle is not None:
        raise ValueError(f"Pages cannot be chosen: {obstacle}.")
    return int(most_pages)


def chosen_pages(query: torch.Tensor, layer: LayerPages, pages: torch.Tensor, most_pages: int) -> torch.Tensor:
    """Of all `pages` that a row `query` [heads, width] sees, the numbers of those read: int64 [KV heads, pages]."""
    heads, numbers = layer.key.plane.num_heads, torch.arange(len(pages))
    if len(pages) <= most_pages:
        return numbers.expand(heads, -1)
    bounds = score_bounds(query, layer, pages, numbers[1:-1])
    best = bounds.sort(dim=-1, descending=True, stable=True).indices[:, : most_pages - FIRST_AND_LAST]
    ends = numbers[[0, -1]].expand(heads, -1)
    return torch.cat((ends[:, :1], best.sort(dim=-1).values + 1, ends[:, 1:]), dim=1)


def score_bounds(query: torch.Tensor, layer: LayerPages, pages: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """How high scores can be in full pages, those `numbers` of `pages`, of all query heads of each KV head.

    fp32 [KV heads, pages].
    """
    plane, slot = layer.key.plane, layer.key
    format = layer.format.of(plane)
    keys = format.decode_kept(layer.pages[pages[numbers], slot.offset : slot.offset + slot.nbytes], plane)
    highest, lowest = (_rounded(each, up=up) for each, up in ((keys.amax(dim=2), True), (keys.amin(dim=2), False)))
    rows = query.float().unflatten(0, (plane.num_heads, -1))  # [KV heads, query heads of each, width]
    lifts = torch.zeros(())
    if layer.constants is not None:
        lifts = torch.einsum("hgd,phd->hgp", rows, layer.constants.common(numbers))
        rows = rows * layer.constants.scales[:, None]
    rows = hadamard(rows, format.rotated_channels(plane))
    bounds = torch.einsum("hgd,phd->hgp", rows.clamp(min=0), highest)
    bounds += torch.einsum("hgd,phd->hgp", rows.clamp(max=0), lowest)
    return (bounds + lifts).amax(dim=1)


def _rounded(values: torch.Tensor, *, up: bool) -> torch.Tensor:
    """Numbers of bf16 at or above `values`, or at or below them, as fp32."""
    bits = values.contiguous().view(torch.int32)
    moves = ((bits & LOW_HALF) != 0) & ((bits < 0) != up)
    return ((bits & ~LOW_HALF) + moves.int() * (LOW_HALF + 1)).view(torch.float32)
