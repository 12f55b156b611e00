"""Attention in plain torch: the definition of what every other backend must compute.

One sequence and one step of arithmetic at a time, in fp32, with the scores written out. Slow on purpose.
"""

from __future__ import annotations

import torch

from pagoda.kernels.base import AttentionRule, AttentionUse, GroupView, Kernels, LayerPages, compaction_obstacle
from pagoda.kernels.cells import is_packed, unpacked
from pagoda.kernels.reference_compaction import PlainCompaction, gather
from pagoda.kernels.reference_layers import ReferenceLayers
from pagoda.kernels.reference_reading import chosen_pages, rows_in_part
from pagoda.kernels.sight import Sight, slots_of


class ReferenceKernels(ReferenceLayers, PlainCompaction, Kernels):
    """Any device, any format, any rule."""

    @property
    def name(self) -> str:
        return "reference (plain torch)"

    @property
    def layers(self) -> ReferenceKernels:
        return self

    def obstacle(self, layer: LayerPages, use: AttentionUse) -> str | None:  # noqa: ARG002
        return None

    def store(
        self,
        key: torch.Tensor,
        value: torch.Tensor | None,
        layer: LayerPages,
        view: GroupView,
        finite: torch.Tensor | None = None,
    ) -> None:
        format = layer.format
        for slot, rows in ((layer.key, key), (layer.value, value)):
            if rows is None:
                continue
            data = layer.pages[:, slot.offset : slot.offset + slot.nbytes]
            for sequence in range(len(view.context_lengths)):
                first, last = view.query_starts[sequence : sequence + 2].tolist()
                places = _new_tokens(view, sequence, layer.geometry.page_tokens)
                own, pages, offsets = (each.to(data.device) for each in places)
                new = rows[first:last]
                if layer.constants is not None and rows is key:
                    new = layer.constants.taken_off(new, own)
                format.write(data, slot.plane, pages, offsets, new)
                if finite is not None and len(pages):
                    used, index = pages.unique(return_inverse=True)
                    stored = format.decode(data[used], slot.plane)[index, :, offsets]
                    finite[sequence] &= stored.isfinite().all()

    def attend(
        self,
        query: torch.Tensor,
        layer: LayerPages,
        view: GroupView,
        rule: AttentionRule,
        sinks: torch.Tensor | None = None,
        biases: torch.Tensor | None = None,
    ) -> torch.Tensor:
        obstacle = compaction_obstacle(layer, AttentionUse(rule, has_biases=biases is not None))
        if view.is_compacted and obstacle:
            raise ValueError(f"These tables are compacted, but {obstacle}.")
        out = query.new_empty(query.shape[0], query.shape[1], layer.value_width)
        for sequence in range(len(view.context_lengths)):
            first, last = view.query_starts[sequence : sequence + 2].tolist()
            if first == last:
                continue
            if is_packed(view, sequence):
                out[first:last] = _attend_packed(query[first:last], layer, view, sequence, rule, sinks)
                continue
            if (most_pages := rows_in_part(layer, view, sequence, rule)) is not None:
                rows = range(first, last)
                parts = [_attend_in_part(query, row, layer, view, (sequence, most_pages), rule, sinks) for row in rows]
                out[first:last] = torch.cat(parts)
                continue
            length = int(view.context_lengths[sequence])
            pages = view.page_indices[view.page_starts[sequence] : view.page_starts[sequence + 1]].long()
            pages = pages.to(query.device)
            sight = Sight.of(view, sequence, rule).to(query.device)
            # Pages behind the reach of all rows may be gone: what they are taken for is masked, and must be a number.
            reached = sight.reached.any(dim=0)
            key, value = (
                gather(layer, slot, pages.clamp(min=0))[:, :length].masked_fill(~reached[:, None], 0)
                for slot in (layer.key, layer.value)
            )
            value = value[..., : layer.value_width]
            out[first:last] = attend_dense(query[first:last], key, value, rule, sinks, biases, sight).to(query.dtype)
        return out


def _attend_packed(
    query: torch.Tensor,
    layer: LayerPages,
    view: GroupView,
    sequence: int,
    rule: AttentionRule,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of the rows of one sequence, KV head by KV head: each has as many tokens as it has."""
    if view.slots is not None or view.ancestors is not None:
        raise ValueError("New tokens behind packed pages must follow one another.")
    rows = query.unflatten(1, (layer.key.plane.num_heads, -1)).unbind(1)
    columns = [None] * len(rows) if sinks is None else sinks.unflatten(0, (len(rows), -1)).unbind()
    parts = []
    for head, (own_rows, own_sinks) in enumerate(zip(rows, columns, strict=True)):
        own, num_tokens = unpacked(layer, view, sequence, head)
        key, value = (
            gather(own, slot, torch.arange(len(own.pages)))[head : head + 1, :num_tokens]
            for slot in (layer.key, layer.value)
        )
        parts.append(attend_dense(own_rows, key, value[..., : layer.value_width], rule, own_sinks))
    return torch.cat(parts, dim=1).to(query.dtype)


def _attend_in_part(  # noqa: PLR0913, PLR0917 - what attention is made of
    query: torch.Tensor,
    row: int,
    layer: LayerPages,
    view: GroupView,
    part: tuple[int, int],
    rule: AttentionRule,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of one row of a sequence, KV head by KV head, over so many pages at most: a `part` is these two."""
    sequence, most_pages = part
    size, (start, end) = layer.geometry.page_tokens, view.query_starts[sequence : sequence + 2].tolist()
    num_tokens = int(view.context_lengths[sequence]) - (end - start) + row - start + 1
    table = view.page_indices[view.page_starts[sequence] :][: -(-num_tokens // size)].long()
    chosen = chosen_pages(query[row], layer, table, most_pages)
    num_read = num_tokens - (len(table) - chosen.shape[1]) * size
    rows = query[row : row + 1].unflatten(1, (len(chosen), -1)).unbind(1)
    columns = [None] * len(rows) if sinks is None else sinks.unflatten(0, (len(rows), -1)).unbind()
    outs = []
    for head, (own_rows, own_sinks) in enumerate(zip(rows, columns, strict=True)):
        key, value = (
            gather(layer, slot, table[chosen[head]], chosen[head])[head : head + 1, :num_read]
            for slot in (layer.key, layer.value)
        )
        outs.append(attend_dense(own_rows, key, value[..., : layer.value_width], rule, own_sinks))
    return torch.cat(outs, dim=1).to(query.dtype)


def attend_dense(  # noqa: PLR0913, PLR0917 - what attention is made of
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rule: AttentionRule,
    sinks: torch.Tensor | None,
    biases: torch.Tensor | None = None,
    sight: Sight | None = None,
) -> torch.Tensor:
    """Attention of rows of one sequence over all of its tokens, in fp32; of the last rows, unless `sight` says which.

    `query` [rows, heads, width]; `key` and `value` [KV heads, tokens, width]; returns [rows, heads, value width].
    """
    group = query.shape[1] // key.shape[0]
    key, value = (plane.float().repeat_interleave(group, dim=0) for plane in (key, value))
    scores = torch.einsum("qhd,hkd->hqk", query.float(), key) * rule.scale
    if rule.soft_cap is not None:
        scores = rule.soft_cap * torch.tanh(scores / rule.soft_cap)
    sight = sight or Sight.of_last(query.shape[0], key.shape[1], rule).to(query.device)
    if rule.slopes is not None:
        scores = scores - torch.tensor(rule.slopes, device=query.device)[:, None, None] * sight.distances
    if biases is not None:
        scores = scores + biases.float()[:, sight.distances.clamp(0, biases.shape[1] - 1)]
    scores = scores.masked_fill(~sight.reached, float("-inf"))
    if sinks is not None:
        column = sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
        weights = torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return torch.einsum("hqk,hkd->qhd", weights, value)


def _new_tokens(view: GroupView, sequence: int, page_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the rows that sequence `sequence` adds: which page of its own each lies in, which of the pool, and where."""
    slots = slots_of(view, sequence)
    own = slots // page_tokens
    return own, view.page_indices[view.page_starts[sequence] + own].long(), slots % page_tokens
