"""One forward pass over a batch: packs the tokens, builds the views, runs the model, and on a device draws what it can.

It is queued, and read once somebody wants to know what came of it. Knows the model, the kernels and the page pools.
Does not know why these sequences were chosen or what becomes of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Sequenced
from dataclasses import dataclass, field, replace
from time import monotonic

import numpy as np
import torch

from pagoda.cache.pool import PagePool
from pagoda.cache.view import build_cuts, build_views
from pagoda.engine.batch import Batch, Chunk
from pagoda.engine.encoding import NewInputs, read_new_inputs
from pagoda.engine.exchange import Answer
from pagoda.engine.page_reads import PageReads
from pagoda.engine.request import Sequence
from pagoda.engine.sampling import are_edited, ban
from pagoda.engine.together import draw_together
from pagoda.formats.constants import KeyConstants
from pagoda.kernels.base import GroupView, Kernels
from pagoda.layouts.spec import SiteSlot
from pagoda.models.attention import BoundSite, EncoderTokens, PagedStep, QueryWatch
from pagoda.models.model import Model
from pagoda.models.replay import DecodeSteps
from pagoda.models.sites import bind_sites
from pagoda.models.states import StepStates, typed_states
from pagoda.planning.memory import MemoryPlan


@dataclass(frozen=True)
class Computed:
    """What came of a step. All tokens of the `complete` sequences are computed, and here are their rows of `logits`.

    `broken` sequences have NaN or infinity among their keys and values, others among their logits, fp32 [rows,
    vocabulary], in which what is never generated is ruled out. `drawn` tokens are those that a device drew, and
    `prompt_logits` of rows to be scored. Logits lie where the model does, and are good until another step is queued.
    """

    complete: list[tuple[Sequence, int]]
    logits: torch.Tensor
    broken: list[Sequence]
    with_broken_logits: list[Sequence]
    drawn: dict[Sequence, int] = field(default_factory=dict)
    prompt_logits: dict[Sequence, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Queued:
    """A step that was `queued` at that time on the monotonic clock, or the part of it that `batch` is.

    `flags` tell of each sequence of `rows` whether what was stored is finite, of each wanted row whether its logits
    are, and then the `tokens` that are drawn after the sequences of `drawing`, as they lie on the device.
    """

    batch: Batch
    queued: float
    rows: _Rows
    logits: torch.Tensor
    flags: Answer
    tokens: torch.Tensor
    drawing: list[Sequence]
    prompt_logits: dict[Sequence, torch.Tensor]
    new_inputs: NewInputs
    encoder_tokens: EncoderTokens | None

    def read(self) -> Computed:
        """Wait for it."""
        rows, ours, flags = self.rows, set(self.batch.sequences), self.flags.read()
        first_row, first_drawn = len(rows.sequences), len(rows.sequences) + len(rows.wanted)
        stored, are_finite, drawn = flags[:first_row], flags[first_row:first_drawn], flags[first_drawn:]
        broken = [each for each, finite in zip(rows.sequences, stored, strict=True) if not finite and each in ours]
        broken += self.new_inputs.broken(self.encoder_tokens)
        complete = [(each, row) for row, each in enumerate(rows.complete) if each in ours]
        with_broken_logits = [each for each, row in complete if not are_finite[rows.drawn[row]]]
        with_broken_logits += [each for each, found in rows.scored.items() if not all(are_finite[found])]
        known = dict(zip(self.drawing, drawn, strict=True))
        return Computed(complete, self.logits, broken, with_broken_logits, known, self.prompt_logits)


def _flags(finite: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Of sequences, whether what was stored is finite; and of rows, whether their logits are: int64.

    The maximum of a row is NaN if anything in it is; -inf alone is a model's way to rule a token out.
    """
    if logits.is_cpu:  # torch would wake threads for it
        are_finite = torch.from_numpy(np.isfinite(logits.numpy().max(axis=-1)))
    else:
        are_finite = logits.amax(dim=-1).isfinite()
    return torch.cat((finite, are_finite.to(torch.int64)))


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

    @property
    def answers_later(self) -> bool:
        """Whether the device computes a step while the host does something else."""
        return self._decode_steps.answers_later

    def is_ready_for(self, num_sequences: int) -> bool:
        """Whether steps of decoding can be queued one after the other, of so many sequences."""
        has_pages_alone = self._states is None and self._cross_group is None
        return has_pages_alone and self._decode_steps.are_replayed(num_sequences)

    def queue(self, batch: Batch, new_inputs: NewInputs, watch: QueryWatch | None = None) -> Queued:
        """Have the tokens of every chunk computed; their pages must be reserved, and their inputs read.

        `watch` sees the queries.
        """
        cached = [chunk.cached for chunk in batch.chunks]
        views = build_views(cached, [len(chunk.tokens) for chunk in batch.chunks])
        views = self._with_readings(views, batch)
        states = None if self._states is None else StepStates(self._states, views[-1], build_cuts(cached))
        step = PagedStep(self._layers, self._sites, views, states, new_inputs.tokens())
        step.watch = watch
        return self._queue(batch, step, new_inputs)

    def queue_ahead(self, batch: Batch, tokens: torch.Tensor) -> Queued:
        """Have a step of decoding computed, whose `tokens`, int64 [chunks], only the device knows.

        Those before them are not committed yet.
        """
        cached = [chunk.cached for chunk in batch.chunks]
        under_way = [chunk.start - each.num_tokens for chunk, each in zip(batch.chunks, cached, strict=True)]
        views = self._with_readings(build_views(cached, [1] * len(batch), under_way), batch)
        step = PagedStep(self._layers, self._sites, views)
        return self._queue(batch, step, NewInputs(), tokens)

    def _queue(
        self, batch: Batch, step: PagedStep, new_inputs: NewInputs, unknown: torch.Tensor | None = None
    ) -> Queued:
        queued, rows = monotonic(), _Rows(batch)
        tokens, num_ahead = (torch.tensor(rows.tokens), 0) if unknown is None else (unknown, 1)
        # A step that moves states on cannot be run twice, as proving a recording takes.
        is_decode = len(rows.tokens) == len(rows.wanted) == len(batch) and step.states is None and step.encoder is None
        forward = self._decode_steps.forward if is_decode else self._model.forward
        wanted = torch.tensor(rows.wanted, dtype=torch.long)
        logits = forward(tokens, torch.tensor(rows.positions), wanted, step)
        flags = _flags(step.finite, logits)
        prompt_logits = {sequence: logits[found] for sequence, found in rows.scored.items()}
        if rows.scored:
            logits = logits[rows.drawn]
        first = [row for row, each in enumerate(rows.complete) if not each.num_output_tokens + num_ahead]
        ban(logits, first, self._model.generation)
        drawing, drawn = list[Sequence](), flags.new_empty(0)
        if self.answers_later or not logits.is_cpu:
            places = [(each, row) for row, each in enumerate(rows.complete) if not are_edited(each)]
            drawing = [each for each, _ in places]
            drawn = draw_together(logits, places, num_ahead) if places else drawn
        answer = Answer(torch.cat((flags, drawn)))
        return Queued(*(batch, queued, rows, logits, answer, drawn, drawing, prompt_logits, new_inputs, step.encoder))

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
        self.sequences = batch.sequences
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
