"""Decode steps recorded once and replayed: the same operations on the same buffers, without the layers' Python.

What a CUDA graph is for a GPU's launches: while weights stream through the caches, the Python of some hundred modules
costs a fifth of a step. Knows when a step is worth it; kernels know how to record one. No recording is used before it
once gave the very logits of the forward it was made from.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

import torch

from pagoda.kernels.base import AttentionRule, Kernels
from pagoda.kernels.recording import RecordedStep, StepRecorder
from pagoda.models.attention import PagedStep, QueryWatch

logger = logging.getLogger(__name__)

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # token ids, positions, rows of logits
Key = tuple[int, int, Hashable]  # sequences, threads, and the kind of step


class PackedModel(Protocol):
    """See `Model.forward`."""

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor, step: PagedStep
    ) -> torch.Tensor: ...


class _Queries:
    """Notes the queries of every attention call of a step, to show them to a watch; as they are now, if `copies`."""

    def __init__(self, copies: bool = False) -> None:
        self._copies = copies
        self._seen: list[tuple[int, AttentionRule, torch.Tensor, torch.Tensor | None]] = []

    def saw(self, call: int, rule: AttentionRule, query: torch.Tensor, sinks: torch.Tensor | None) -> None:
        self._seen.append((call, rule, query.clone() if self._copies else query, sinks))

    def show(self, watch: QueryWatch | None) -> None:
        if watch is not None:
            for each in self._seen:
                watch.saw(*each)

    def equals(self, other: _Queries) -> bool:
        return all(torch.equal(mine[2], its[2]) for mine, its in zip(self._seen, other._seen, strict=True))


@dataclass(eq=False)
class _Recorded:
    """A step with the `queries` that are in its buffers after each replay."""

    step: RecordedStep
    queries: _Queries
    is_proved: bool = False


class DecodeSteps:
    """The forward of decode steps, by number of sequences: run a few times, then recorded, proved, and replayed.

    Logits are good until the next step.
    """

    def __init__(self, model: PackedModel, kernels: Kernels) -> None:
        self._model = model
        self._recorder = kernels.recorder
        # The longest unused first.
        self._recordings: dict[Key, _Recorded] = {}
        self._num_runs: Counter[Key] = Counter()  # of those that are not recorded

    @property
    def are_repeatable(self) -> bool:
        return self._recorder is not None

    @property
    def answers_later(self) -> bool:
        """Whether a replay may be over later than it returns."""
        return self._recorder is not None and self._recorder.answers_later

    def are_replayed(self, num_sequences: int) -> bool:
        """Whether a step of so many is replayed by now, of one kind at least."""
        if self._recorder is None:
            return False
        size = self._recorder.size_for(num_sequences), torch.get_num_threads()
        return any(key[:2] == size and recorded.is_proved for key, recorded in self._recordings.items())

    @torch.inference_mode()
    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor, step: PagedStep
    ) -> torch.Tensor:
        """`Model.forward` of a step that computes one token of every sequence and its logits."""
        inputs = (token_ids, positions, logit_rows)
        if self._recorder is None or (step.watch is not None and not self._recorder.keeps_queries):
            return self._model.forward(*inputs, step)
        count = len(token_ids)
        size = self._recorder.size_for(count)
        if size == count:
            return self._forward(self._recorder, inputs, step)
        return self._forward(self._recorder, _padded(inputs, size), step.padded(size))[:count]

    def _forward(self, recorder: StepRecorder, inputs: Inputs, step: PagedStep) -> torch.Tensor:
        key = (len(inputs[0]), torch.get_num_threads(), recorder.kind_of(step.views))
        if key not in self._recordings:
            self._num_runs[key] += 1
            if self._num_runs[key] <= recorder.runs_before:
                return self._model.forward(*inputs, step)
            del self._num_runs[key]
            return self._record(recorder, key, inputs, step)
        recorded = self._recordings[key] = self._recordings.pop(key)
        if not recorded.step.takes(step.views):
            return self._record(recorder, key, inputs, step)
        if recorded.is_proved:
            logits = recorded.step.replay(inputs, step.views, step.finite)
            recorded.queries.show(step.watch)
            return logits
        return self._prove(recorder, recorded, inputs, step)

    def _record(self, recorder: StepRecorder, key: Key, inputs: Inputs, step: PagedStep) -> torch.Tensor:
        def forward(token_ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor) -> torch.Tensor:
            return self._model.forward(token_ids, positions, logit_rows, step)

        watch, queries = step.watch, _Queries()
        step.watch = queries if recorder.keeps_queries else None
        try:
            recording = recorder.record(forward, inputs, step.views, step.finite)
        except Exception as error:  # whatever a family does that cannot be recorded; its own errors come again below
            self._give_up(repr(error))
            step.watch = watch
            return self._model.forward(*inputs, step)
        self._recordings[key] = _Recorded(recording, queries)
        while sum(each.step.nbytes for each in self._recordings.values()) > recorder.most_nbytes:
            del self._recordings[next(iter(self._recordings))]
        if watch is None:
            return recording.result
        step.watch = watch  # which is shown no queries before it is proved that they are in the buffers at the end
        return self._model.forward(*inputs, step)

    def _prove(self, recorder: StepRecorder, recorded: _Recorded, inputs: Inputs, step: PagedStep) -> torch.Tensor:
        """The forward of a step, whose logits and queries a replay must give too if it is to be used."""
        watch, queries = step.watch, _Queries(copies=True)
        step.watch = queries if recorder.keeps_queries else None
        logits = self._model.forward(*inputs, step)
        queries.show(watch)
        count = step.num_sequences  # there may be more, which nobody asked for
        if not logits[:count].isnan().any():  # which equals nothing
            replayed = recorded.step.replay(inputs, step.views, step.finite)[:count]
            if torch.equal(replayed, logits[:count]) and queries.equals(recorded.queries):
                recorded.is_proved = True
            else:
                self._give_up("a replayed step gave other logits or queries")
        return logits

    def _give_up(self, reason: str) -> None:
        self._recorder = None
        self._recordings.clear()
        logger.info("Decode steps of this model run the Python of its layers: %s", reason)


def _padded(inputs: Inputs, size: int) -> Inputs:
    """With rows of a token that no sequence has."""
    token_ids, positions, _ = (torch.nn.functional.pad(each, (0, size - len(each))) for each in inputs)
    return token_ids, positions, torch.arange(size)
