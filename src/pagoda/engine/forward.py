"""One forward pass over a plan: packs the tokens, builds the views, runs the model.

Knows the model, the kernels and the page pools. Does not know why these sequences were chosen or what becomes of the
logits.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequenced
from dataclasses import dataclass

import torch

from pagoda.cache.pool import PagePool
from pagoda.cache.view import build_views
from pagoda.engine.request import Sequence
from pagoda.engine.scheduler import Plan
from pagoda.kernels.base import Kernels, LayerPages
from pagoda.models.attention import BoundSite, PagedStep
from pagoda.models.model import Model
from pagoda.models.replay import DecodeSteps


@dataclass(frozen=True)
class Computed:
    """What came of a step: fp32 `logits` [sequences, vocabulary] of the `complete` ones, whose tokens are all computed.

    `broken` sequences have NaN or infinity among their keys and values.
    """

    complete: list[Sequence]
    logits: torch.Tensor
    broken: list[Sequence]


class Forward:
    """Runs a model over page pools, one per layer group."""

    def __init__(self, model: Model, kernels: Kernels, pools: Sequenced[PagePool]) -> None:
        self._model = model
        self._decode_steps = DecodeSteps(model, kernels)
        self._kernels = kernels
        self._sites = tuple(
            BoundSite(
                rule=rule,
                layer=LayerPages(pools[slot.group].pages, pools[slot.group].geometry, slot.layer),
                group=slot.group,
                writes=slot.writes,
            )
            for rule, slot in zip(model.rules, model.spec.sites, strict=True)
        )

    def run(self, plan: Plan) -> Computed:
        """Compute the planned tokens of every sequence; their pages must be reserved."""
        tokens: list[int] = []
        positions: list[int] = []
        complete: list[Sequence] = []
        rows: list[int] = []
        for sequence, num_tokens in plan.items():
            assert sequence.cached is not None
            start = sequence.cached.num_tokens
            tokens += sequence.tokens[start : start + num_tokens]
            positions += range(start, start + num_tokens)
            if start + num_tokens == len(sequence.tokens):
                complete.append(sequence)
                rows.append(len(tokens) - 1)
        views = build_views([s.cached for s in plan if s.cached is not None], list(plan.values()))
        step = PagedStep(self._kernels, self._sites, views)
        is_decode = len(tokens) == len(rows) == len(plan)
        forward = self._decode_steps.forward if is_decode else self._model.forward
        logits = forward(torch.tensor(tokens), torch.tensor(positions), torch.tensor(rows, dtype=torch.long), step)
        broken = [sequence for sequence, finite in zip(plan, step.finite.tolist(), strict=True) if not finite]
        return Computed(complete, logits, broken)
