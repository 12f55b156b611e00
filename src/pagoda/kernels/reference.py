"""The plain torch kernels: the definition of what every other backend must compute.

One sequence and one step of arithmetic at a time, in fp32, with the scores written out. Slow on purpose.
"""

from __future__ import annotations

import torch

from pagoda.formats.page import PlaneSlot
from pagoda.kernels.base import AttentionRule, GroupView, Kernels, LayerPages
from pagoda.layouts.spec import Reach


class ReferenceKernels(Kernels):
    """Any device, any format."""

    @property
    def name(self) -> str:
        return "reference (plain torch)"

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
                pages, offsets, first, last = _new_tokens(view, sequence, layer.geometry.page_tokens, data.device)
                new = rows[first:last]
                if layer.constants is not None and rows is key:
                    length = int(view.context_lengths[sequence])
                    positions = torch.arange(length - len(new), length, device=new.device)
                    new = layer.constants.taken_off(new, positions // layer.geometry.page_tokens)
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
        out = query.new_empty(query.shape[0], query.shape[1], layer.value_width)
        for sequence in range(len(view.context_lengths)):
            first, last = view.query_starts[sequence : sequence + 2].tolist()
            if first == last:
                continue
            length = int(view.context_lengths[sequence])
            pages = view.page_indices[view.page_starts[sequence] : view.page_starts[sequence + 1]].long()
            pages = pages.to(query.device)
            # Pages behind the reach of all rows may be gone: what they are taken for is masked, and must be a number.
            reached = in_reach(last - first, length, rule, pages.device).any(dim=0)
            key, value = (
                _gather(layer, slot, pages.clamp(min=0))[:, :length].masked_fill(~reached[:, None], 0)
                for slot in (layer.key, layer.value)
            )
            value = value[..., : layer.value_width]
            out[first:last] = attend_dense(query[first:last], key, value, rule, sinks, biases).to(query.dtype)
        return out

    def takes_linear(self, input: torch.Tensor, weight: torch.Tensor) -> bool:  # noqa: ARG002
        return False

    def linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.nn.functional.linear(input, weight, bias)

    def takes_gated_linear(self, input: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> bool:  # noqa: ARG002
        return False

    def gated_linear(self, input: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return self.gated_silu(self.linear(input, gate, None), self.linear(input, up, None))

    def rms_norm(self, input: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = input.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        return weight * normed.to(input.dtype)

    def gated_silu(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(gate) * up

    def takes_rotation(self, input: torch.Tensor, cosines: torch.Tensor) -> bool:
        return input.shape[0] == 1 and cosines.shape == (1, input.shape[2], input.shape[3])

    def multiply_heads(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.bmm(input.transpose(0, 1), weight).transpose(0, 1)

    def rotate(self, input: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        first, second = input.chunk(2, dim=-1)
        crossed = torch.cat((-second, first), dim=-1)
        return input * cosines[:, None] + crossed * sines[:, None]


def attend_dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rule: AttentionRule,
    sinks: torch.Tensor | None,
    biases: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of the last rows of one sequence over all of its tokens, in fp32.

    `query` [rows, heads, width]; `key` and `value` [KV heads, tokens, width]; returns [rows, heads, value width].
    """
    group = query.shape[1] // key.shape[0]
    key, value = (plane.float().repeat_interleave(group, dim=0) for plane in (key, value))
    scores = torch.einsum("qhd,hkd->hqk", query.float(), key) * rule.scale
    if rule.soft_cap is not None:
        scores = rule.soft_cap * torch.tanh(scores / rule.soft_cap)
    token = torch.arange(key.shape[1], device=query.device)
    distances = torch.arange(key.shape[1] - query.shape[0], key.shape[1], device=query.device)[:, None] - token
    if rule.slopes is not None:
        scores = scores - torch.tensor(rule.slopes, device=query.device)[:, None, None] * distances
    if biases is not None:
        scores = scores + biases.float()[:, distances.clamp(0, biases.shape[1] - 1)]
    scores = scores.masked_fill(~in_reach(query.shape[0], key.shape[1], rule, query.device), float("-inf"))
    if sinks is not None:
        column = sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
        weights = torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return torch.einsum("hqk,hkd->qhd", weights, value)


def in_reach(rows: int, tokens: int, rule: AttentionRule, device: torch.device) -> torch.Tensor:
    """Which tokens the last `rows` of `tokens` positions attend to: bool [rows, tokens]."""
    query = torch.arange(tokens - rows, tokens, device=device)[:, None]
    token = torch.arange(tokens, device=device)[None]
    if rule.reach is Reach.ENCODER:
        return torch.ones(rows, tokens, dtype=torch.bool, device=device)
    reach = token <= query
    if rule.reach is Reach.SLIDING and rule.span is not None:
        reach &= query - token < rule.span
    if rule.reach is Reach.CHUNKED and rule.span is not None:
        reach &= query // rule.span == token // rule.span
    return reach


def _gather(layer: LayerPages, slot: PlaneSlot, pages: torch.Tensor) -> torch.Tensor:
    """The tokens of `pages`, all of a sequence, in order: fp32 [heads, tokens, width]."""
    data = layer.pages[pages, slot.offset : slot.offset + slot.nbytes]
    kept = layer.format.decode(data, slot.plane)
    if layer.constants is not None and slot is layer.key:
        return layer.constants.given_back(kept)
    return kept.transpose(0, 1).flatten(1, 2)


def _new_tokens(
    view: GroupView, sequence: int, page_tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Pages and offsets, on `device`, of the tokens that sequence `sequence` adds, and their packed rows."""
    first, last = view.query_starts[sequence : sequence + 2].tolist()
    length = int(view.context_lengths[sequence])
    positions = torch.arange(length - (last - first), length, device=view.page_indices.device)
    pages = view.page_indices[view.page_starts[sequence] + positions // page_tokens]
    return pages.long().to(device), (positions % page_tokens).to(device), first, last
