"""The interface of what records a step of a model once, and replays it without the Python of the layers.

Knows tensors and page tables. Does not know which steps are worth it: `models/replay.py` does, and proves a recording
before it is used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pagoda.kernels.base import GroupView


class UnrepeatableError(Exception):
    """Another run of the step might do something else."""


class RecordedStep(ABC):
    """One step, ready to be run again; what it keeps takes `nbytes` of memory."""

    result: torch.Tensor  # of the step it was made from, until it is replayed
    nbytes: int

    @abstractmethod
    def replay(self, inputs: Sequence[torch.Tensor], views: Sequence[GroupView], finite: torch.Tensor) -> torch.Tensor:
        """The result of another step with as many sequences, good until the next replay.

        Inputs may lie on the device; `views` and other inputs are not looked at any more once it returns.
        """

    def takes(self, views: Sequence[GroupView]) -> bool:  # noqa: ARG002
        """Whether there is room for their pages."""
        return True


class StepRecorder(ABC):
    """Runs steps and notes what they do.

    All recordings together keep at most `most_nbytes`. A size of step is run `runs_before` times before it is recorded:
    to record and to prove takes as long as is saved in about as many.
    """

    most_nbytes = 64 << 20
    runs_before = 8
    # Whether a replay is over later than the call that asks for it, and its result good for what is asked for after it.
    answers_later = False
    # Whether a tensor that was made while a step was recorded has its numbers after each replay.
    keeps_queries = False

    def size_for(self, num_sequences: int) -> int:
        """How many sequences a step of `num_sequences` is padded to, so that fewer sizes are recorded."""
        return num_sequences

    def kind_of(self, views: Sequence[GroupView]) -> Hashable:  # noqa: ARG002
        """Steps of other kinds are recorded apart."""
        return None

    @abstractmethod
    def record(
        self,
        step: Callable[..., torch.Tensor],
        inputs: Sequence[torch.Tensor],
        views: Sequence[GroupView],
        finite: torch.Tensor,
    ) -> RecordedStep:
        """Run `step(*inputs)`, which attends by `views` and marks `finite` as it stores.

        Raises UnrepeatableError, or whatever the step raises.
        """
