"""What compression needs of pages, in plain torch: what tokens are attended to by, and moving the bytes of a token.

Knows one layer of one sequence. Bytes move as they are: a token's code is its own, so no number is rounded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pagoda.kernels.base import AttentionRule, LayerPages
from pagoda.kernels.reference import gather
from pagoda.kernels.rotation import PairRotation

# How many values are projected at once.
PROJECTED_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class LastQueries:
    """Of one attention call: `queries` [rows, query heads, width] of the last tokens, as attention was given them."""

    rule: AttentionRule
    queries: torch.Tensor
    sinks: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Beside:
    """What else policies look at of a layer, as far as they need it, and of each attention call that reads it.

    Results of calls go through `projections` [query heads * value width, outputs], and `observed` is what the policy
    has made of all queries. The sequence has `num_tokens`, kept or not.
    """

    projections: Sequence[torch.Tensor] = ()
    observed: Sequence[torch.Tensor] = ()
    rotation: PairRotation | None = None
    num_tokens: int = 0


NOTHING = Beside()


class StoredLayer:
    """A `LayerView` of `pages`, in which a sequence has the first `num_slots` slots, and of its calls of attention.

    `beside` is what else there is to look at.
    """

    def __init__(
        self,
        layer: LayerPages,
        pages: torch.Tensor,
        num_slots: int,
        calls: Sequence[LastQueries],
        beside: Beside = NOTHING,
    ) -> None:
        self._layer = layer
        self._pages = pages
        self._calls = calls
        self._beside = beside
        self.observed = beside.observed
        self.num_tokens = beside.num_tokens
        self.number = layer.layer
        self.num_heads = layer.key.plane.num_heads
        self.num_slots = num_slots

    @property
    def keys(self) -> torch.Tensor:
        return gather(self._layer, self._layer.key, self._pages)[:, : self.num_slots]

    @property
    def values(self) -> torch.Tensor:
        return gather(self._layer, self._layer.value, self._pages)[:, : self.num_slots, : self._layer.value_width]

    @property
    def logits(self) -> torch.Tensor:
        keys = self.keys
        return torch.cat([self._logits(call, keys) for call in self._calls], dim=1)

    @property
    def weights(self) -> torch.Tensor:
        keys = self.keys
        return torch.cat([self._weights(call, keys) for call in self._calls], dim=1)

    @property
    def output_norms(self) -> torch.Tensor:
        values = self.values
        heads = (each.unflatten(0, (self.num_heads, -1, values.shape[-1])) for each in self._beside.projections)
        return torch.cat([_projected_norms(values, each) for each in heads], dim=1)

    @property
    def unturned_queries(self) -> torch.Tensor:
        return torch.cat([self._unturned(call) for call in self._calls], dim=1)

    def mean_turn(self, first: int, count: int) -> torch.Tensor:
        assert self._beside.rotation is not None
        return self._beside.rotation.mean_turn(torch.arange(first, first + count), self._layer.key.plane.width)

    def _unturned(self, call: LastQueries) -> torch.Tensor:
        assert self._beside.rotation is not None
        positions = torch.arange(self.num_tokens - len(call.queries), self.num_tokens)
        queries = self._beside.rotation.turned(call.queries.float() * call.rule.scale, -positions)
        return queries.view(len(queries), self.num_heads, -1, queries.shape[-1]).permute(1, 2, 0, 3)

    def _logits(self, call: LastQueries, keys: torch.Tensor) -> torch.Tensor:
        """[KV heads, query heads of each, queries, slots]"""
        rows = len(call.queries)
        queries = call.queries.float().unflatten(1, (self.num_heads, -1))
        logits = torch.einsum("rhgd,hsd->hgrs", queries, keys) * call.rule.scale
        if call.rule.soft_cap is not None:
            logits = call.rule.soft_cap * torch.tanh(logits / call.rule.soft_cap)
        sees = torch.ones(rows, self.num_slots, dtype=torch.bool, device=keys.device).tril(self.num_slots - rows)
        return logits.masked_fill(~sees, float("-inf"))

    def _weights(self, call: LastQueries, keys: torch.Tensor) -> torch.Tensor:
        logits = self._logits(call, keys)
        if call.sinks is None:
            return logits.softmax(dim=-1)
        sinks = call.sinks.float().view(self.num_heads, -1, 1, 1).expand(*logits.shape[:-1], 1)
        return torch.cat((logits, sinks), dim=-1).softmax(dim=-1)[..., :-1]


def _projected_norms(values: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """Of `values` [KV heads, slots, width] through `heads` [KV heads, query heads of each, width, outputs], L1."""
    norms = values.new_empty(*heads.shape[:2], values.shape[1])
    for own, group, found in zip(values, heads, norms, strict=True):
        for projection, row in zip(group.float(), found, strict=True):
            parts = [(part @ projection).abs().sum(dim=-1) for part in own.split(PROJECTED_TOKENS)]
            torch.cat(parts, out=row)
    return norms


def move_tokens(layer: LayerPages, pages: torch.Tensor, kept: torch.Tensor, target: torch.Tensor) -> None:
    """Copy the tokens in slots `kept` [KV heads, count] of `pages` to the first slots of `target`, head by head.

    `target`, uint8 [pages, page_nbytes], is memory outside the pool.
    """
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
