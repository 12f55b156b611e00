"""One forward pass over a plan: packs the tokens, builds the views, runs the model.

Knows the model, the kernels and the page pools. Does not know why these sequences were chosen or what becomes of the
logits.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequenced
from dataclasses import dataclass

import torch

from pagoda.cache.cross import CrossTable, Entry
from pagoda.cache.pool import PagePool
from pagoda.cache.view import build_cuts, build_encoder_view, build_views
from pagoda.engine.memory import MemoryPlan
from pagoda.engine.request import Sequence
from pagoda.engine.scheduler import Plan
from pagoda.kernels.base import Kernels, LayerPages
from pagoda.models.attention import BoundSite, EncoderTokens, PagedStep
from pagoda.models.model import Model
from pagoda.models.replay import DecodeSteps
from pagoda.models.states import StepStates, typed_states


@dataclass(frozen=True)
class Computed:
    """What came of a step: fp32 `logits` [sequences, vocabulary] of the `complete` ones, whose tokens are all computed.

    `broken` sequences have NaN or infinity among their keys and values.
    """

    complete: list[Sequence]
    logits: torch.Tensor
    broken: list[Sequence]


class Forward:
    """Runs a model over the page pools of `memory`: one per layer group, and then one of recurrent states, if any."""

    def __init__(self, model: Model, kernels: Kernels, memory: MemoryPlan, pools: Sequenced[PagePool]) -> None:
        self._model = model
        self._decode_steps = DecodeSteps(model, kernels)
        self._kernels = kernels
        self._sites = tuple(
            BoundSite(
                rule=rule,
                layer=LayerPages(pools[slot.group].pages, memory.geometries[slot.group], slot.layer),
                group=slot.group,
                writes=slot.writes,
            )
            for rule, slot in zip(model.rules, model.spec.sites, strict=True)
        )
        self._cross_group = memory.cross_group
        states = memory.states
        self._states = None if states is None else typed_states(states.geometry, pools[-1].pages, model.dtype)

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
        cached = [sequence.cached for sequence in plan if sequence.cached is not None]
        views = build_views(cached, list(plan.values()))
        states = None if self._states is None else StepStates(self._states, views[-1], build_cuts(cached))
        fresh = self._fresh_outputs(plan)
        step = PagedStep(self._kernels, self._sites, views, states, self._encode(fresh))
        # A step that moves states on cannot be run twice, as proving a recording takes.
        is_decode = len(tokens) == len(rows) == len(plan) and states is None and not fresh
        forward = self._decode_steps.forward if is_decode else self._model.forward
        logits = forward(torch.tensor(tokens), torch.tensor(positions), torch.tensor(rows, dtype=torch.long), step)
        broken = [sequence for sequence, finite in zip(plan, step.finite.tolist(), strict=True) if not finite]
        return Computed(complete, logits, broken + _broken_by_encoder(step, fresh))

    def _fresh_outputs(self, plan: Plan) -> dict[Entry, list[Sequence]]:
        """Encoder outputs that are in no pages yet, and who attends to them."""
        fresh: dict[Entry, list[Sequence]] = {}
        if self._cross_group is None:
            return fresh
        for sequence in plan:
            assert sequence.cached is not None
            table: CrossTable = sequence.cached.tables[self._cross_group]
            if not table.entry.is_written:
                fresh.setdefault(table.entry, []).append(sequence)
        return fresh

    def _encode(self, fresh: dict[Entry, list[Sequence]]) -> EncoderTokens | None:
        """Each output is computed for itself, so that it does not depend on those beside it."""
        if not fresh:
            return None
        encoder, inputs = self._model.encoder, [readers[0].request.encoder_input for readers in fresh.values()]
        assert encoder is not None
        hidden = torch.cat([encoder.encode(each) for each in inputs if each is not None])
        return EncoderTokens(hidden, build_encoder_view(list(fresh)))


def _broken_by_encoder(step: PagedStep, fresh: dict[Entry, list[Sequence]]) -> list[Sequence]:
    """Those who attend to keys and values of NaN or infinity that an encoder's output gave."""
    if step.encoder is None:
        return []
    flags = zip(fresh.values(), step.encoder.finite.tolist(), strict=True)
    return [reader for readers, finite in flags if not finite for reader in readers]
