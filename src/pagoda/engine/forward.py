"""One forward pass over a batch: packs the tokens, builds the views, runs the model.

Knows the model, the kernels and the page pools. Does not know why these sequences were chosen or what becomes of the
logits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Sequenced
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from pagoda.cache.pool import PagePool
from pagoda.cache.view import build_cuts, build_views
from pagoda.engine.batch import Batch, Chunk
from pagoda.engine.encoding import NewInputs, read_new_inputs
from pagoda.engine.page_reads import PageReads
from pagoda.engine.request import Sequence
from pagoda.formats.constants import KeyConstants
from pagoda.kernels.base import GroupView, Kernels
from pagoda.layouts.spec import SiteSlot
from pagoda.models.attention import BoundSite, PagedStep, QueryWatch
from pagoda.models.model import Model
from pagoda.models.replay import DecodeSteps
from pagoda.models.sites import bind_sites
from pagoda.models.states import StepStates, typed_states
from pagoda.planning.memory import MemoryPlan


@dataclass(frozen=True)
class Computed:
    """What came of a step: fp32 `logits` [sequences, vocabulary] of the `complete` ones, whose tokens are all computed.

    `broken` sequences have NaN or infinity among their keys and values, others among their logits. `prompt_logits` are
    of rows to be scored. Logits lie where the model does.
    """

    complete: list[Sequence]
    logits: torch.Tensor
    broken: list[Sequence]
    with_broken_logits: list[Sequence]
    prompt_logits: dict[Sequence, torch.Tensor] = field(default_factory=dict)


def _flags(finite: torch.Tensor, logits: torch.Tensor) -> tuple[list[bool], list[bool]]:
    """Of sequences, whether what was stored is finite; and of rows, whether their logits are, in one transfer.

    The maximum of a row is NaN if anything in it is; -inf alone is a model's way to rule a token out.
    """
    if logits.is_cpu:  # torch would wake threads for it
        return finite.bool().tolist(), np.isfinite(logits.numpy().max(axis=-1)).tolist()
    flags = torch.cat((finite.to(logits.device).bool(), logits.amax(dim=-1).isfinite())).tolist()
    return flags[: len(finite)], flags[len(finite) :]


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
        summaries = {index: pool.summaries for index, pool in enumerate(pools) if pool.summaries is not None}
        bound = bind_sites(model.discovered, kernels, memory.geometries, pages, constants, summaries)
        self._sites, self.kernel_choice = bound.sites, bound.choice
        # Groups that read pages in part, for requests that ask for it.
        self.choosing_groups: Collection[int] = ()
        self.page_reads = PageReads(memory.geometries)
        self._cross_group = memory.cross_group
        states = memory.states
        self._states = None if states is None else typed_states(states.geometry, pools[-1].pages, model.dtype)

    def read(self, batch: Batch) -> NewInputs:
        """What the encoder of the model makes of inputs that are new in this step."""
        return read_new_inputs(self._model.encoder, self._cross_group, batch.sequences)

    @property
    def sites(self) -> tuple[BoundSite, ...]:
        """The attention calls of the model, in call order."""
        return self._sites

    def run(self, batch: Batch, new_inputs: NewInputs, watch: QueryWatch | None = None) -> Computed:
        """Compute the tokens of every chunk; their pages must be reserved, and their inputs read.

        `watch` sees the queries.
        """
        rows = _Rows(batch)
        cached = [chunk.cached for chunk in batch.chunks]
        views = build_views(cached, [len(chunk.tokens) for chunk in batch.chunks])
        views = self._with_readings(views, batch)
        states = None if self._states is None else StepStates(self._states, views[-1], build_cuts(cached))
        encoder_tokens = new_inputs.tokens()
        step = PagedStep(self._layers, self._sites, views, states, encoder_tokens)
        step.watch = watch
        # A step that moves states on cannot be run twice, as proving a recording takes.
        is_decode = len(rows.tokens) == len(rows.wanted) == len(batch) and states is None and encoder_tokens is None
        forward = self._decode_steps.forward if is_decode else self._model.forward
        wanted = torch.tensor(rows.wanted, dtype=torch.long)
        logits = forward(torch.tensor(rows.tokens), torch.tensor(rows.positions), wanted, step)
        stored, are_finite = _flags(step.finite, logits)
        broken = [each for each, finite in zip(batch.sequences, stored, strict=True) if not finite]
        broken += new_inputs.broken(encoder_tokens)
        with_broken_logits = [each for each, row in zip(rows.complete, rows.drawn, strict=True) if not are_finite[row]]
        if not rows.scored:
            return Computed(rows.complete, logits, broken, with_broken_logits)
        with_broken_logits += [each for each, found in rows.scored.items() if not all(are_finite[found])]
        prompt_logits = {sequence: logits[found] for sequence, found in rows.scored.items()}
        return Computed(rows.complete, logits[rows.drawn], broken, with_broken_logits, prompt_logits)

    def _with_readings(self, views: tuple[GroupView, ...], batch: Batch) -> tuple[GroupView, ...]:
        """What is said in a step of how much is read."""
        numbers = [_reading_numbers(chunk) for chunk in batch.chunks]
        if not any(most_pages for most_pages, _ in numbers):
            return views
        for chunk, (most_pages, first_layer) in zip(batch.chunks, numbers, strict=True):
            if most_pages:
                ends = range(chunk.start + 1, chunk.start + len(chunk.tokens) + 1)
                self.page_reads.count(self.choosing_groups, ends, most_pages, first_layer)
        readings = torch.tensor(numbers, dtype=torch.int32)
        return tuple(
            replace(view, readings=readings) if group in self.choosing_groups else view
            for group, view in enumerate(views)
        )


def _reading_numbers(chunk: Chunk) -> tuple[int, int]:
    """As `GroupView.readings` has them. A chunk ends where its sequence begins to read in part."""
    reading, exact = chunk.sequence.request.reading, chunk.sequence.num_exact_tokens
    if reading is None or exact is None or chunk.start < exact:
        return 0, 0
    return reading.most_pages, reading.dense_layers


class _Rows:
    """The chunks of a batch end to end: `tokens`, `positions`, and which rows are `wanted`.

    Of the wanted ones `drawn` are those of `complete` sequences, and `scored` has those that tell of prompts.
    """

    def __init__(self, batch: Batch) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.wanted: list[int] = []
        self.complete: list[Sequence] = []
        self.drawn: list[int] = []
        self.scored: dict[Sequence, slice] = {}
        for sequence, start, tokens, scored, drawn, _ in batch.chunks:
            first = len(self.tokens)
            if scored:
                self.scored[sequence] = slice(len(self.wanted), len(self.wanted) + len(scored))
                self.wanted += [first + row for row in scored]
            self.tokens += tokens
            self.positions += range(start, start + len(tokens))
            for row in drawn:
                self.complete.append(sequence)
                self.drawn.append(len(self.wanted))
                self.wanted.append(first + row)
