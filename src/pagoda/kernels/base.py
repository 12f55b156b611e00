"""The signatures every kernel backend implements, and the frozen data they receive.

Knows pages as bytes, page tables as integers and what a query may attend to. Does not know requests, trees or models.
A backend gets all it needs in its arguments and keeps no state between calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pagoda.formats.base import Format
from pagoda.formats.constants import KeyConstants
from pagoda.formats.page import PageGeometry, PlaneSlot
from pagoda.layouts.spec import Reach

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class GroupView:
    """The page tables of one layer group for one step of packed sequences. All tensors are int32 on the host.

    Sequence s owns rows `query_starts[s] : query_starts[s + 1]` of the packed queries, keys and values; they are the
    last of its `context_lengths[s]` tokens. Its pages are `page_indices[page_starts[s] : page_starts[s + 1]]`: token
    t lies in the page at t // page_tokens. Entries that no row of the sequence reaches are -1 if a window left them.

    Where pages hold an encoder's tokens (`Reach.ENCODER`), `context_lengths` counts those, and rows are none of them.
    """

    page_indices: torch.Tensor  # [pages of all sequences]
    page_starts: torch.Tensor  # [sequences + 1]
    query_starts: torch.Tensor  # [sequences + 1]
    context_lengths: torch.Tensor  # [sequences]


@dataclass(frozen=True, eq=False)
class LayerPages:
    """One layer's share of a page pool: `pages` is uint8 [num_pages, page_nbytes].

    With `constants`, keys are kept without what they have in common.
    """

    pages: torch.Tensor
    geometry: PageGeometry
    layer: int
    constants: KeyConstants | None = None

    @cached_property
    def format(self) -> Format:
        return self.geometry.format_of(self.layer)

    @property
    def key(self) -> PlaneSlot:
        return self.geometry.slots[self.layer][0]

    @property
    def value(self) -> PlaneSlot:
        """The plane of the values; that of the keys if those are values too."""
        return self.geometry.slots[self.layer][-1]

    @property
    def value_width(self) -> int:
        return self.value.plane.value_width or self.value.plane.width


@dataclass(frozen=True)
class AttentionRule:
    """How scores are made: softmax over the tokens in reach of soft_cap * tanh(scale * q.k / soft_cap), or scale * q.k.

    With `slopes`, one for each query head, a score loses the slope for every token that it lies before the query
    (ALiBi, arXiv 2108.12409).

    `span` is the window or chunk in tokens. A query at position i reaches j <= i with, if SLIDING, i - j < span and, if
    CHUNKED, i // span == j // span. If ENCODER, it reaches every token there is.
    """

    scale: float
    reach: Reach = Reach.FULL
    span: int | None = None
    soft_cap: float | None = None
    slopes: tuple[float, ...] | None = None


class Kernels(ABC):
    """A backend. Tensors of one call are on one device; packed rows follow `GroupView`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What `pagoda doctor` and the start-up log call it, with the instruction set in use."""

    @abstractmethod
    def store(
        self,
        key: torch.Tensor,
        value: torch.Tensor | None,
        layer: LayerPages,
        view: GroupView,
        finite: torch.Tensor | None = None,
    ) -> None:
        """Write `key` [rows, KV heads, key width] and `value` [rows, KV heads, value width] into the pages.

        `value` is None where keys are values too. Rows may have any strides but the last, which is one. Entries of
        `finite`, uint8 [sequences], become zero where NaN or infinity was stored.
        """

    @abstractmethod
    def attend(
        self,
        query: torch.Tensor,
        layer: LayerPages,
        view: GroupView,
        rule: AttentionRule,
        sinks: torch.Tensor | None = None,
        biases: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of `query` [rows, heads, key width] over the pages; returns [rows, heads, value width].

        Query head h reads KV head h // (heads / KV heads). `sinks` [heads] are extra logits that take weight and have
        no value (GPT-OSS). `biases` [heads, distances] are added to the scores of tokens so far back, the last one to
        those of all that lie farther (T5, arXiv 1910.10683). Scores and sums are in fp32; the result has the type of
        `query` and is contiguous.
        """

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
    def rms_norm(self, input: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Root-mean-square norm (arXiv 1910.07467) over the last axis of `input` [..., width], times `weight` [width].

        Computed in fp32 and rounded to the type of `input` before the product, as Llama does.
        """

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
