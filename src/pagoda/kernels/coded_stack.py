"""Matrices of one shape and one coding, held one after the other: those of experts, of which a step reads few.

Knows coded weights. Does not know which experts a token is sent to.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pagoda.errors import ConfigError
from pagoda.kernels.coded_weight import CodedWeight, HeldCodes
from pagoda.kernels.weight_memory import WeightMemory


class CodedStack(HeldCodes):
    """`count` matrices [rows, depth]; `data` is uint8 [count, blocks of rows, bytes of a block], a parameter."""

    @classmethod
    def of(cls, count: int, weights: Iterable[CodedWeight], memory: WeightMemory | None = None) -> CodedStack:
        """Of `count` matrices, which are copied one by one into `memory`, or into torch's.

        Raises ConfigError for one that is coded in another way.
        """
        weights = iter(weights)
        first = next(weights)
        stack = cls.unfilled(*first.form, memory, count=(count,))
        stack.data[0] = first.data
        for number, weight in enumerate(weights, start=1):
            if weight.form != first.form:
                raise ConfigError(f"Matrix {number} of {count} is not coded as the first.")
            stack.data[number] = weight.data
        return stack

    @classmethod
    def of_rows(cls, weight: CodedWeight, rows: int) -> CodedStack:
        """The rows of one matrix as those of several, `rows` each, in the same memory: whole blocks of codes."""
        blocks = len(weight.data) * rows // weight.rows
        return cls(weight.kind, weight.coding, rows, weight.depth, weight.data.unflatten(0, (-1, blocks)))

    @property
    def count(self) -> int:
        return len(self.data)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.count, self.rows, self.depth

    @property
    def num_weights(self) -> int:
        return self.count * self.rows * self.depth

    def matrix(self, number: int) -> CodedWeight:
        """One of them, in the same memory."""
        return CodedWeight(self.kind, self.coding, self.rows, self.depth, self.data[number])

    def decode(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """All weights: [count, rows, depth]."""
        out = torch.empty(self.shape, dtype=dtype, device=self.data.device)
        for number in range(self.count):
            out[number] = self.matrix(number).decode(dtype)
        return out
