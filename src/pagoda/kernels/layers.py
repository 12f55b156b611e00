"""The interface of kernels for what layers compute besides attention: products, norms, gates, rotations.

Knows shapes and types. Does not know pages, nor which modules of a model ask (`models/linear.py`, `models/fused.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

    from pagoda.kernels.coded_stack import CodedStack
    from pagoda.kernels.coded_weight import CodedWeight

# A weight [columns, depth] and a bias [columns].
CodedLayer: TypeAlias = "tuple[CodedWeight, torch.Tensor | None]"


class LayerKernels(ABC):
    """What the layers of a step call. Some must be asked first whether they take tensors of these shapes and types."""

    # Whether what meets coded weights is coded to 8 bits, so that results are others.
    codes_input = True

    @abstractmethod
    def takes_linear(self, input: torch.Tensor, weight: torch.Tensor) -> bool:
        """Whether `linear` was measured to beat torch for these shapes and types."""

    @abstractmethod
    def linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """A linear layer on the few rows of a decode step; only for what `takes_linear` accepts.

        `input` [..., depth], `weight` [columns, depth], `bias` [columns]; returns [..., columns] in the type of
        `input`, with sums in fp32.
        """

    @abstractmethod
    def takes_gated_linear(self, input: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> bool:
        """Whether `gated_linear` was measured to beat its parts for these shapes and types."""

    @abstractmethod
    def gated_linear(self, input: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """`gated_silu` of two linear layers without bias on `input` [..., depth]; weights [columns, depth]."""

    @abstractmethod
    def coded_linears(self, input: torch.Tensor, layers: Sequence[CodedLayer]) -> list[torch.Tensor]:
        """Linear layers on coded weights [columns, depth], for any number of rows; `input` [..., depth] is that of all.

        With `codes_input` input is coded too, to 8 bits: each 32 numbers of a row have a scale, which is a 127th of the
        largest. Sums are exact within these, and in fp32 beyond. Else it is taken as it is, and weights in its type.
        Returns [..., columns] of each layer in the type of `input`.
        """

    def coded_linear(self, input: torch.Tensor, weight: CodedWeight, bias: torch.Tensor | None) -> torch.Tensor:
        """One of them."""
        return self.coded_linears(input, [(weight, bias)])[0]

    @abstractmethod
    def coded_experts(
        self, input: torch.Tensor, weight: CodedStack, experts: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """`coded_linear` of each row of `input` [rows, depth] with those matrices that its `experts` [rows, n] name.

        `bias` is [matrices, columns]. Returns [rows, n, columns]. What no row names is not read. Raises IndexError for
        a matrix that is not there; on a GPU, whose numbers nobody waits for, results of it are zeros.
        """

    @abstractmethod
    def coded_heads(self, input: torch.Tensor, weight: CodedWeight, first: int) -> torch.Tensor:
        """A product of each head along rows of coded weights, which has as many rows for each head.

        `input` is [rows, heads, depth]; of a head's rows those from `first` on meet it, `depth` of them. Both are
        multiples of a block of codes. Input is not coded; sums are in fp32. Returns [rows, heads, weight.depth] in the
        type of `input`.
        """

    @abstractmethod
    def coded_rows(self, weight: CodedWeight, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows of coded weights, as an embedding takes them: [*numbers, depth]."""

    @abstractmethod
    def rms_norm(self, input: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Root-mean-square norm (arXiv 1910.07467) over the last axis of `input` [..., width], times `weight` [width].

        Computed in fp32 and rounded to the type of `input` before the product, as Llama does.
        """

    def add_norm(
        self, residual: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of two tensors [..., width] of one shape and type, and `rms_norm` of it."""
        total = residual + added
        return total, self.rms_norm(total, weight, epsilon)

    @abstractmethod
    def gated_silu(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up (arXiv 2002.05202), each rounded to their common type."""

    @abstractmethod
    def takes_rotation(self, input: torch.Tensor, cosines: torch.Tensor) -> bool:
        """Whether `rotate` accepts tensors of these shapes and types."""

    @abstractmethod
    def multiply_heads(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """A product for each head: `input` [rows, heads, depth], `weight` [heads, depth, columns].

        Returns [rows, heads, columns].
        """

    @abstractmethod
    def rotate(self, input: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        """Rotary embedding (arXiv 2104.09864) of `input` [1, heads, rows, width], halves of a head paired.

        `cosines` and `sines` are [1, rows, width]. Returns the shape of `input`, with the heads of a row side by side.
        """

    def rotate_both(
        self, query: torch.Tensor, key: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`rotate` of both, which may have different numbers of heads."""
        return self.rotate(query, cosines, sines), self.rotate(key, cosines, sines)
