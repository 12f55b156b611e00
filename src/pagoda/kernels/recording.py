"""The interface of what records a step of a model once, and replays it without the Python of the layers.

Knows tensors and page tables. Does not know which steps are worth it: `models/replay.py` does, and proves a recording
before it is used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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
        """The result of another step with as many sequences, good until the next replay."""


class StepRecorder(ABC):
    """Runs steps and notes what they do."""

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
