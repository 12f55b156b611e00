"""What policies see of a layer: its tokens, and what the last queries make of them.

Knows one layer of one sequence. Does not know how scores are computed: the kernels of the layer do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pagoda.formats.rotation import PairRotation
from pagoda.kernels.base import AttentionKernels, AttentionRule, GroupView, LayerPages
from pagoda.kernels.reference_compaction import gather, weights_of
from pagoda.layouts.spec import Reach

# Queries that meet tokens which all come before them.
ALL_OF_THEM = AttentionRule(scale=1.0, reach=Reach.ENCODER)
# How many values are projected at once.
PROJECTED_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class LastQueries:
    """Of one attention call: `queries` [rows, query heads, width] of the last tokens, as attention was given them."""

    rule: AttentionRule
    queries: torch.Tensor
    sinks: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class StoredTokens:
    """The first `num_slots` slots of `pages`, int64: those of a sequence in `layer`, which `kernels` read."""

    kernels: AttentionKernels
    layer: LayerPages
    pages: torch.Tensor
    num_slots: int

    def view(self, num_rows: int, num_slots: int | None = None) -> GroupView:
        """Their page table, for `num_rows` queries; of the first `num_slots` alone, or of all."""
        pages, rows, length = [0, len(self.pages)], [0, num_rows], [num_slots or self.num_slots]
        return GroupView(self.pages.int(), _int32(pages), _int32(rows), _int32(length))


@dataclass(frozen=True, eq=False)
class Beside:
    """What else policies look at of a layer, as far as they need it, and of each attention call that reads it.

    Results of calls go through what `projections` give, [query heads * value width, outputs], and `observed` is what
    the policy has made of all queries. The sequence has `num_tokens`, kept or not.
    """

    projections: Sequence[Callable[[], torch.Tensor]] = ()
    observed: Sequence[torch.Tensor] = ()
    rotation: PairRotation | None = None
    num_tokens: int = 0


NOTHING = Beside()


class StoredLayer:
    """A `LayerView` of what is stored, of the calls of attention that read it, and of what else there is to look at."""

    def __init__(self, tokens: StoredTokens, calls: Sequence[LastQueries], beside: Beside = NOTHING) -> None:
        self._tokens = tokens
        self._layer = tokens.layer
        self._calls = calls
        self._beside = beside
        self.observed = beside.observed
        self.num_tokens = beside.num_tokens
        self.number = tokens.layer.layer
        self.num_heads = tokens.layer.key.plane.num_heads
        self.num_slots = tokens.num_slots

    @property
    def keys(self) -> torch.Tensor:
        return gather(self._layer, self._layer.key, self._tokens.pages)[:, : self.num_slots]

    @property
    def values(self) -> torch.Tensor:
        values = gather(self._layer, self._layer.value, self._tokens.pages)
        return values[:, : self.num_slots, : self._layer.value_width]

    @property
    def logits(self) -> torch.Tensor:
        return _joined([self._logits(call) for call in self._calls])

    @property
    def weights(self) -> torch.Tensor:
        return _joined([weights_of(self._logits(call), call.sinks) for call in self._calls])

    @property
    def mass(self) -> torch.Tensor:
        return self._of_all_rows(is_peak=False)

    @property
    def peak(self) -> torch.Tensor:
        return self._of_all_rows(is_peak=True)

    @property
    def group_logits(self) -> torch.Tensor:
        return self.logits.sum(dim=1)

    def group_mass(self, count: int) -> torch.Tensor:
        if any(call.rule.soft_cap is not None for call in self._calls):
            return self.group_logits[..., :count].softmax(dim=-1).sum(dim=1)
        # Logits of sums of queries are sums of logits.
        scaled = [call.queries.float() * call.rule.scale for call in self._calls]
        queries = torch.cat([each.unflatten(1, (self.num_heads, -1)) for each in scaled], dim=2).sum(dim=2)
        view = self._tokens.view(len(queries), count)
        return self._tokens.kernels.attention_mass(queries, self._layer, view, ALL_OF_THEM)[:, 0]

    @property
    def output_norms(self) -> torch.Tensor:
        values = self.values
        heads = (each().unflatten(0, (self.num_heads, -1, values.shape[-1])) for each in self._beside.projections)
        return _joined([_projected_norms(values, each) for each in heads])

    @property
    def unturned_queries(self) -> torch.Tensor:
        return _joined([self._unturned(call) for call in self._calls])

    def mean_turn(self, first: int, count: int) -> torch.Tensor:
        assert self._beside.rotation is not None
        turn = self._beside.rotation.mean_turn(torch.arange(first, first + count), self._layer.key.plane.width)
        return turn.to(self._layer.pages.device)

    def _of_all_rows(self, *, is_peak: bool) -> torch.Tensor:
        kernels, views = self._tokens.kernels, [self._tokens.view(len(call.queries)) for call in self._calls]
        return _joined(
            [
                kernels.attention_mass(call.queries, self._layer, view, call.rule, call.sinks, is_peak=is_peak)
                for call, view in zip(self._calls, views, strict=True)
            ]
        )

    def _logits(self, call: LastQueries) -> torch.Tensor:
        view = self._tokens.view(len(call.queries))
        return self._tokens.kernels.logits(call.queries, self._layer, view, call.rule)

    def _unturned(self, call: LastQueries) -> torch.Tensor:
        assert self._beside.rotation is not None
        positions = torch.arange(self.num_tokens - len(call.queries), self.num_tokens)
        queries = self._beside.rotation.turned(call.queries.float() * call.rule.scale, -positions)
        return queries.view(len(queries), self.num_heads, -1, queries.shape[-1]).permute(1, 2, 0, 3)


def _joined(by_call: list[torch.Tensor]) -> torch.Tensor:
    """Calls that read one layer are further query heads of its KV heads."""
    return by_call[0] if len(by_call) == 1 else torch.cat(by_call, dim=1)


def _projected_norms(values: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """Of `values` [KV heads, slots, width] through `heads` [KV heads, query heads of each, width, outputs], L1."""
    norms = values.new_empty(*heads.shape[:2], values.shape[1])
    for own, group, found in zip(values, heads, norms, strict=True):
        for projection, row in zip(group.float(), found, strict=True):
            parts = [(part @ projection).abs().sum(dim=-1) for part in own.split(PROJECTED_TOKENS)]
            torch.cat(parts, out=row)
    return norms


def _int32(numbers: list[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)
