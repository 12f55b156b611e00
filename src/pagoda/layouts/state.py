"""The state of a recurrent layer: a few tensors of constant size that stand for all tokens before them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

FULL_PRECISION_NBYTES = 4


class StateKind(StrEnum):
    """What a tensor of a state is for."""

    CONVOLUTION = "convolution"  # the last inputs of a short convolution: [channels, kernel size]
    RECURRENT = "recurrent"  # what the scan or the delta rule carries on: any shape


@dataclass(frozen=True)
class StateTensor:
    """One tensor of a layer's state, as one sequence has it; `index` counts those of its kind.

    It is kept as the layer computes it: in fp32 (`full_precision`) or in the precision of the weights. Encoding would
    add up its error from token to token.
    """

    kind: StateKind
    index: int
    shape: tuple[int, ...]
    full_precision: bool

    def part(self, num_devices: int) -> StateTensor:
        """Of each of so many devices: channels or heads are divided."""
        return replace(self, shape=(-(-self.shape[0] // num_devices), *self.shape[1:]))

    def nbytes(self, weight_nbytes: int) -> int:
        """`weight_nbytes` is the size of one number in the precision of the weights."""
        return prod(self.shape) * (FULL_PRECISION_NBYTES if self.full_precision else weight_nbytes)


@dataclass(frozen=True)
class StateLayout:
    """What one recurrent layer keeps of a sequence. Nothing of it can be resumed but at a point where it was copied."""

    tensors: tuple[StateTensor, ...]

    def part(self, num_devices: int) -> StateLayout:
        return StateLayout(tuple(tensor.part(num_devices) for tensor in self.tensors))

    def nbytes(self, weight_nbytes: int) -> int:
        return sum(tensor.nbytes(weight_nbytes) for tensor in self.tensors)
