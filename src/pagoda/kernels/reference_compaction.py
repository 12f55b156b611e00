"""What compression needs of pages, in plain torch: what tokens are attended to by, and moving the bytes of a token.

The definition of what every other backend must compute, and what serves those that have nothing of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pagoda.formats.page import PlaneSlot
from pagoda.kernels.base import AttentionKernels, AttentionRule, GroupView, LayerPages, check_scored
from pagoda.kernels.cells import cells_of, places_of
from pagoda.layouts.spec import Reach


class PlainCompaction(AttentionKernels):
    """Any device, any format. Scores are written out."""

    def logits(self, query: torch.Tensor, layer: LayerPages, view: GroupView, rule: AttentionRule) -> torch.Tensor:
        check_scored(layer, view, rule)
        rows, num_slots = len(query), int(view.context_lengths[0])
        keys = gather(layer, layer.key, view.page_indices.long().to(query.device))[:, :num_slots]
        logits = torch.einsum("rhgd,hsd->hgrs", query.float().unflatten(1, (len(keys), -1)), keys) * rule.scale
        if rule.soft_cap is not None:
            logits = rule.soft_cap * torch.tanh(logits / rule.soft_cap)
        if rule.reach is Reach.ENCODER:
            return logits
        sees = torch.ones(rows, num_slots, dtype=torch.bool, device=keys.device).tril(num_slots - rows)
        return logits.masked_fill(~sees, float("-inf"))

    def attention_mass(
        self,
        query: torch.Tensor,
        layer: LayerPages,
        view: GroupView,
        rule: AttentionRule,
        sinks: torch.Tensor | None = None,
        *,
        is_peak: bool = False,
    ) -> torch.Tensor:
        weights = weights_of(self.logits(query, layer, view, rule), sinks)
        return weights.amax(dim=2) if is_peak else weights.sum(dim=2)

    def move_tokens(self, layer: LayerPages, pages: torch.Tensor, kept: torch.Tensor, target: torch.Tensor) -> None:
        geometry = layer.geometry
        size = geometry.page_tokens
        slots = torch.arange(kept.shape[1], device=kept.device)
        heads = torch.arange(kept.shape[0], device=kept.device)[:, None]
        for slot in geometry.slots[layer.layer]:
            part = slice(slot.offset, slot.offset + slot.nbytes)
            stored = layer.format.token_views(layer.pages[:, part], slot.plane)
            for read, write in zip(stored, layer.format.token_views(target[:, part], slot.plane), strict=True):
                inner = read.shape[-3]
                offset, new = kept % size, slots % size
                token = read[pages[kept // size], heads, offset // inner, offset % inner]
                write[slots // size, heads, new // inner, new % inner] = token

    def pack_tokens(
        self,
        layer: LayerPages,
        pages: torch.Tensor,
        kept: Sequence[torch.Tensor],
        target: torch.Tensor,
        first_cell: int,
    ) -> None:
        heads, size = len(kept), layer.geometry.page_tokens
        for head, slots in enumerate(kept):
            moved = target.new_empty(len(slots) // size, target.shape[1])
            self.move_tokens(layer, pages, slots.expand(heads, -1), moved)
            last_cell = first_cell + len(moved)
            places = places_of(layer, torch.arange(first_cell, last_cell))
            for source, cells in zip(cells_of(layer, moved), cells_of(layer, target), strict=True):
                cells[places] = source[:, layer.layer, head]
            first_cell = last_cell


def weights_of(logits: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """What attention makes of `logits` [KV heads, query heads of each, rows, slots] and `sinks` [query heads]."""
    if sinks is None:
        return logits.softmax(dim=-1)
    columns = sinks.float().view(*logits.shape[:2], 1, 1).expand(*logits.shape[:-1], 1)
    return torch.cat((logits, columns), dim=-1).softmax(dim=-1)[..., :-1]


def gather(
    layer: LayerPages, slot: PlaneSlot, pages: torch.Tensor, numbers: torch.Tensor | None = None
) -> torch.Tensor:
    """The tokens of `pages`, the first of a sequence or those of these `numbers`: fp32 [heads, tokens, width]."""
    data = layer.pages[pages, slot.offset : slot.offset + slot.nbytes]
    kept = layer.format.decode(data, slot.plane)
    if layer.constants is not None and slot is layer.key:
        return layer.constants.given_back(kept, numbers)
    return kept.transpose(0, 1).flatten(1, 2)
