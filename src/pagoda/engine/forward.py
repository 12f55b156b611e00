"""One forward pass over a plan: packs the tokens, builds the views, runs the model.

Knows the model, the kernels and the page pools. Does not know why these sequences were chosen or what becomes of the
logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Sequenced
from dataclasses import dataclass, field

import numpy as np
import torch

from pagoda.cache.pool import PagePool
from pagoda.cache.view import build_cuts, build_views
from pagoda.engine.encoding import NewInputs, read_new_inputs
from pagoda.engine.memory import MemoryPlan
from pagoda.engine.request import Sequence
from pagoda.engine.scheduler import Plan
from pagoda.engine.scoring import positions_to_score
from pagoda.formats.constants import KeyConstants
from pagoda.kernels.base import Kernels
from pagoda.layouts.spec import SiteSlot
from pagoda.models.attention import PagedStep
from pagoda.models.model import Model
from pagoda.models.replay import DecodeSteps
from pagoda.models.sites import bind_sites
from pagoda.models.states import StepStates, typed_states


@dataclass(frozen=True)
class Computed:
    """What came of a step: fp32 `logits` [sequences, vocabulary] of the `complete` ones, whose tokens are all computed.

    `broken` sequences have NaN or infinity among their keys and values. `prompt_logits` are of rows to be scored.
    """

    complete: list[Sequence]
    logits: torch.Tensor
    broken: list[Sequence]
    prompt_logits: dict[Sequence, torch.Tensor] = field(default_factory=dict)

    def with_broken_logits(self) -> list[Sequence]:
        """Those with NaN or infinity among their logits; -inf alone is a model's way to rule a token out."""
        rows = [*zip(self.complete, _are_finite(self.logits), strict=True)]
        rows += [(sequence, all(_are_finite(logits))) for sequence, logits in self.prompt_logits.items()]
        return [sequence for sequence, is_finite in rows if not is_finite]


def _are_finite(logits: torch.Tensor) -> list[bool]:
    """Of each row; its maximum is NaN if anything in it is. Through numpy, since torch wakes threads for it."""
    found: list[bool] = np.isfinite(logits.numpy().max(axis=-1)).tolist()
    return found


class Forward:
    """Runs a model over the page pools of `memory`: one per layer group, and then one of recurrent states, if any.

    `constants` are what the keys of layers are kept without.
    """

    def __init__(
        self,
        model: Model,
        kernels: Kernels,
        memory: MemoryPlan,
        pools: Sequenced[PagePool],
        constants: Mapping[SiteSlot, KeyConstants],
    ) -> None:
        self._model = model
        self._decode_steps = DecodeSteps(model, kernels)
        self._layers = kernels.layers
        pages = [pool.pages for pool in pools]
        bound = bind_sites(model.discovered, kernels, memory.geometries, pages, constants)
        self._sites, self.kernel_choice = bound.sites, bound.choice
        self._cross_group = memory.cross_group
        states = memory.states
        self._states = None if states is None else typed_states(states.geometry, pools[-1].pages, model.dtype)

    def read(self, plan: Plan) -> NewInputs:
        """What the encoder of the model makes of inputs that are new in this step."""
        return read_new_inputs(self._model.encoder, self._cross_group, plan)

    def run(self, plan: Plan, new_inputs: NewInputs) -> Computed:
        """Compute the planned tokens of every sequence; their pages must be reserved, and their inputs read."""
        tokens: list[int] = []
        positions: list[int] = []
        complete: list[Sequence] = []
        rows: list[int] = []
        complete_rows: list[int] = []  # of `rows`, like `scored_rows`
        scored_rows: dict[Sequence, slice] = {}
        for sequence, num_tokens in plan.items():
            assert sequence.cached is not None
            start = sequence.cached.num_tokens
            if to_score := positions_to_score(sequence, start, num_tokens):
                scored_rows[sequence] = slice(len(rows), len(rows) + len(to_score))
                rows += [len(tokens) + position - start for position in to_score]
            tokens += sequence.tokens[start : start + num_tokens]
            positions += range(start, start + num_tokens)
            if start + num_tokens == len(sequence.tokens):
                complete.append(sequence)
                complete_rows.append(len(rows))
                rows.append(len(tokens) - 1)
        cached = [sequence.cached for sequence in plan if sequence.cached is not None]
        views = build_views(cached, list(plan.values()))
        states = None if self._states is None else StepStates(self._states, views[-1], build_cuts(cached))
        encoder_tokens = new_inputs.tokens()
        step = PagedStep(self._layers, self._sites, views, states, encoder_tokens)
        # A step that moves states on cannot be run twice, as proving a recording takes.
        is_decode = len(tokens) == len(rows) == len(plan) and states is None and encoder_tokens is None
        forward = self._decode_steps.forward if is_decode else self._model.forward
        logits = forward(torch.tensor(tokens), torch.tensor(positions), torch.tensor(rows, dtype=torch.long), step)
        broken = [sequence for sequence, finite in zip(plan, step.finite.tolist(), strict=True) if not finite]
        broken += new_inputs.broken(encoder_tokens)
        if not scored_rows:
            return Computed(complete, logits, broken)
        prompt_logits = {sequence: logits[rows] for sequence, rows in scored_rows.items()}
        return Computed(complete, logits[complete_rows], broken, prompt_logits)
