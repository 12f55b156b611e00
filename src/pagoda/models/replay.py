"""Decode steps recorded once and replayed: the same operations on the same buffers, without the layers' Python.

What a CUDA graph is for a GPU's launches: while weights stream through the caches, the Python of some hundred modules
costs a fifth of a step. Knows when a step is worth it; kernels know how to record one. No recording is used before it
once gave the very logits of the forward it was made from.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Protocol

import torch

from pagoda.kernels.base import Kernels
from pagoda.kernels.recording import RecordedStep, StepRecorder
from pagoda.models.attention import PagedStep

logger = logging.getLogger(__name__)

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # token ids, positions, rows of logits


class PackedModel(Protocol):
    """See `Model.forward`."""

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor, step: PagedStep
    ) -> torch.Tensor: ...


class DecodeSteps:
    """The forward of decode steps, by number of sequences: run a few times, then recorded, proved, and replayed.

    Logits are good until the next step.
    """

    def __init__(self, model: PackedModel, kernels: Kernels) -> None:
        self._model = model
        self._recorder = kernels.recorder
        # By sequences and threads, the longest unused first.
        self._recordings: dict[tuple[int, int], RecordedStep] = {}
        self._proved: set[tuple[int, int]] = set()
        self._num_runs: Counter[tuple[int, int]] = Counter()  # of those that are not recorded

    @property
    def are_repeatable(self) -> bool:
        return self._recorder is not None

    @torch.inference_mode()
    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor, step: PagedStep
    ) -> torch.Tensor:
        """`Model.forward` of a step that computes one token of every sequence and its logits."""
        inputs = (token_ids, positions, logit_rows)
        if self._recorder is None:
            return self._model.forward(*inputs, step)
        count = len(token_ids)
        size = self._recorder.size_for(count)
        if size == count:
            return self._forward(self._recorder, inputs, step)
        return self._forward(self._recorder, _padded(inputs, size), step.padded(size))[:count]

    def _forward(self, recorder: StepRecorder, inputs: Inputs, step: PagedStep) -> torch.Tensor:
        key = (len(inputs[0]), torch.get_num_threads())
        if key not in self._recordings:
            self._num_runs[key] += 1
            if self._num_runs[key] <= recorder.runs_before:
                return self._model.forward(*inputs, step)
            del self._num_runs[key]
            return self._record(recorder, key, inputs, step)
        recording = self._recordings[key] = self._recordings.pop(key)
        if not recording.takes(step.views):
            self._proved.discard(key)
            return self._record(recorder, key, inputs, step)
        if key in self._proved:
            return recording.replay(inputs, step.views, step.finite)
        logits = self._model.forward(*inputs, step)
        count = step.num_sequences  # there may be more, which nobody asked for
        if not logits[:count].isnan().any():  # which equals nothing
            if torch.equal(recording.replay(inputs, step.views, step.finite)[:count], logits[:count]):
                self._proved.add(key)
            else:
                self._give_up("a replayed step gave other logits")
        return logits

    def _record(self, recorder: StepRecorder, key: tuple[int, int], inputs: Inputs, step: PagedStep) -> torch.Tensor:
        def forward(token_ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor) -> torch.Tensor:
            return self._model.forward(token_ids, positions, logit_rows, step)

        try:
            recording = recorder.record(forward, inputs, step.views, step.finite)
        except Exception as error:  # whatever a family does that cannot be recorded; its own errors come again below
            self._give_up(repr(error))
            return self._model.forward(*inputs, step)
        self._recordings[key] = recording
        while sum(each.nbytes for each in self._recordings.values()) > recorder.most_nbytes:
            oldest = next(iter(self._recordings))
            del self._recordings[oldest]
            self._proved.discard(oldest)
        return recording.result

    def _give_up(self, reason: str) -> None:
        self._recorder = None
        self._recordings.clear()
        logger.info("Decode steps of this model run the Python of its layers: %s", reason)


def _padded(inputs: Inputs, size: int) -> Inputs:
    """With rows of a token that no sequence has."""
    token_ids, positions, _ = (torch.nn.functional.pad(each, (0, size - len(each))) for each in inputs)
    return token_ids, positions, torch.arange(size)
