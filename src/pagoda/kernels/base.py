"""The interface of a kernel backend, and the frozen data that attention gets.

Knows pages as bytes, page tables as integers and what a query may attend to. Does not know requests, trees or models.
A backend gets all it needs in its arguments and keeps no state between calls. It says once, when a model is loaded,
what it cannot attend to (`obstacle`); `choice.py` acts on that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

from pagoda.config import Environment
from pagoda.errors import ConfigError
from pagoda.formats.base import Format
from pagoda.formats.constants import KeyConstants
from pagoda.formats.page import PageGeometry, PlaneSlot
from pagoda.kernels.layers import LayerKernels
from pagoda.kernels.recording import StepRecorder
from pagoda.layouts.spec import Reach
from pagoda.registry import lookup

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


# A tree has at most so many new rows: their ancestors are bits of a number, which kernels test with one shift for each
# row and token. Parents would have to be followed for every pair, or turned into such bits in every layer.
MOST_TREE_ROWS = 64
# The ancestors of a row that sees all new rows before it, however many.
CHAIN = -1


@dataclass(frozen=True, eq=False)
class GroupView:
    """The page tables of one layer group for one step of packed sequences. All tensors are on the host.

    Sequence s owns rows `query_starts[s] : query_starts[s + 1]` of the packed queries, keys and values; they are the
    last of its `context_lengths[s]` tokens. Its pages are `page_indices[page_starts[s] : page_starts[s + 1]]`: token
    t lies in the page at t // page_tokens. Entries that no row of the sequence reaches are -1 if a window left them.

    Where pages hold an encoder's tokens (`Reach.ENCODER`), `context_lengths` counts those, and rows are none of them.

    The other fields are None where a token's position is its slot, the place in the table, and every row sees all
    before it. `positions` then tells windows and distances, `slots` where rows are stored instead of in the last ones;
    `context_lengths` counts slots. A row sees what was stored before the step and itself; of the new rows before it in
    the sequence it sees number j if bit j of its `ancestors` is set, or all of them if that is CHAIN. A sequence of
    more than MOST_TREE_ROWS new rows has CHAIN everywhere. If `is_compacted`, what is stored lies in other slots than
    its positions: `compaction_obstacle` says where that would be wrong.

    With `cell_starts` the first pages of some sequences are packed. A cell is the share of a KV head of a layer in a
    page; those of a sequence are numbered page by page, and in a page layer by layer. Of sequence s, cells
    `cell_starts[s, i] : cell_starts[s, i + 1]` have the first tokens of KV head i % KV heads in layer i // KV heads;
    its own cells of the pages behind have the others. Layers must be alike (`layer_nbytes`), and new rows follow one
    another.

    With `readings` rows of some sequences read the pages alone that matter most to them: those of sequence s at most
    `readings[s, 0]`, or all if that is 0, in the layers of the group from number `readings[s, 1]` on. Each row chooses
    for each KV head: its first page, its last one, and of the full ones between them those whose keys bound the scores
    of the query heads highest, by the largest and the smallest number of each channel; of equal ones the earlier
    (Quest, arXiv 2406.10774). Such rows follow one another, on pages that are not packed, with `summaries` and without
    a `distance_obstacle`.
    """

    page_indices: torch.Tensor  # int32 [pages of all sequences]
    page_starts: torch.Tensor  # int32 [sequences + 1]
    query_starts: torch.Tensor  # int32 [sequences + 1]
    context_lengths: torch.Tensor  # int32 [sequences]
    positions: torch.Tensor | None = None  # int32 [rows]
    slots: torch.Tensor | None = None  # int32 [rows]
    ancestors: torch.Tensor | None = None  # int64 [rows]
    is_compacted: bool = False
    cell_starts: torch.Tensor | None = None  # int32 [sequences, layers x KV heads + 1]
    readings: torch.Tensor | None = None  # int32 [sequences, 2]


@dataclass(frozen=True, eq=False)
class LayerSummaries:
    """What bounds the scores of a page's tokens, in one layer: the reach of its keys as they are kept.

    Of each page whose summary `is_made`, by KV head: the largest number of each channel, rounded up, then the smallest
    ones, rounded down, then zeros. Kernels make them when a full page is first asked for, and forget them where they
    store; whoever writes pages in other ways says that they are not made.
    """

    numbers: torch.Tensor  # bf16 [pages, KV heads, summary_numbers]
    is_made: torch.Tensor  # uint8 [pages]


@dataclass(frozen=True, eq=False)
class LayerPages:
    """One layer's share of a page pool: `pages` is uint8 [num_pages, page_nbytes].

    With `constants`, keys are kept without what they have in common. With `summaries` rows can choose their pages.
    """

    pages: torch.Tensor
    geometry: PageGeometry
    layer: int
    constants: KeyConstants | None = None
    summaries: LayerSummaries | None = None

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
    CHUNKED, i // span == j // span. If ENCODER, it reaches every token there is. Where there is a span, the first
    `sink_tokens` are in reach besides (StreamingLLM, arXiv 2309.17453).
    """

    scale: float
    reach: Reach = Reach.FULL
    span: int | None = None
    soft_cap: float | None = None
    slopes: tuple[float, ...] | None = None
    sink_tokens: int = 0


@dataclass(frozen=True)
class AttentionUse:
    """How one attention call of a model uses kernels: by which rule, and with sinks or biases besides."""

    rule: AttentionRule
    has_sinks: bool = False
    has_biases: bool = False


def distance_obstacle(use: AttentionUse) -> str | None:
    """Why what is attended to must be all that lies in a row, as the rest of a sentence; None if it need not."""
    if use.rule.span is not None and use.rule.reach is not Reach.FULL:
        return "windows and chunks reach tokens by their positions"
    if use.rule.slopes is not None or use.has_biases:
        return "scores depend on the positions of tokens"
    return None


def compaction_obstacle(layer: LayerPages, use: AttentionUse) -> str | None:
    """Why stored tokens must lie in the slots of their positions, as the rest of a sentence; None if they need not."""
    obstacle = distance_obstacle(use)
    if obstacle is not None:
        return obstacle
    if layer.constants is not None and layer.constants.num_pairs:
        return "keys are kept without what they have in common at the positions of their page"
    return None


def check_scored(layer: LayerPages, view: GroupView, rule: AttentionRule) -> None:
    """Raise ConfigError if keys of `layer` cannot be scored by `rule` for the sequence of `view`."""
    obstacle = compaction_obstacle(layer, AttentionUse(rule))
    if view.cell_starts is not None:
        obstacle = "those of packed pages are not"
    if len(view.context_lengths) != 1 or view.slots is not None or view.ancestors is not None:
        obstacle = "there must be one sequence, whose rows are its last ones"
    if obstacle is not None:
        raise ConfigError(f"Keys cannot be scored: {obstacle}.")


class AttentionKernels(ABC):
    """What attention calls. Tensors of one call are on one device; packed rows follow `GroupView`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What `pagoda doctor` and the start-up log call it, with the instruction set in use."""

    @property
    def is_deterministic(self) -> bool:
        """Whether a row has the same bits in every batch, so that nothing else may stand in."""
        return False

    @abstractmethod
    def obstacle(self, layer: LayerPages, use: AttentionUse) -> str | None:
        """Why the pages of `layer` cannot be written or attended to so, as the rest of a sentence; None if they can.

        Asked once for every attention call, when a model is loaded.
        """

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
    def logits(self, query: torch.Tensor, layer: LayerPages, view: GroupView, rule: AttentionRule) -> torch.Tensor:
        """What attention takes the softmax of: fp32 [KV heads, query heads of each, rows, slots], -inf out of sight.

        `query` [rows, heads, key width] are the last rows of the only sequence of `view`, or none of its tokens if the
        rule's reach is ENCODER. Raises ConfigError where there is a `compaction_obstacle`: it is for sequences that are
        compressed.
        """

    @abstractmethod
    def attention_mass(
        self,
        query: torch.Tensor,
        layer: LayerPages,
        view: GroupView,
        rule: AttentionRule,
        sinks: torch.Tensor | None = None,
        *,
        is_peak: bool = False,
    ) -> torch.Tensor:
        """The weights of attention, summed over rows: fp32 [KV heads, query heads of each, slots]. See `logits`.

        With `is_peak` the largest of all rows instead. What is asked for of many rows takes no more memory than of one.
        """

    @abstractmethod
    def move_tokens(self, layer: LayerPages, pages: torch.Tensor, kept: torch.Tensor, target: torch.Tensor) -> None:
        """Copy the tokens in slots `kept` [KV heads, count] of `pages` to the first slots of `target`, head by head.

        `pages`, int64, are those of a sequence; `target`, uint8 [pages, page_nbytes], is memory outside the pool. Bytes
        move as they are.
        """

    @abstractmethod
    def pack_tokens(
        self,
        layer: LayerPages,
        pages: torch.Tensor,
        kept: Sequence[torch.Tensor],
        target: torch.Tensor,
        first_cell: int,
    ) -> None:
        """Copy the tokens in slots `kept[h]` of each KV head to the cells of `target` from `first_cell` on.

        The cells of one head follow those of another, and are full; see `GroupView.cell_starts`. The rest is as for
        `move_tokens`.
        """


class Kernels(AttentionKernels):
    """A backend, as it is registered: it attends, and may bring kernels for layers and record steps."""

    @classmethod
    def of(cls, environment: Environment, deterministic: bool) -> Self:
        """One for this machine. Raises KernelUnavailableError if it cannot run here.

        With `deterministic`, ConfigError unless a row has the same bits in every batch.
        """
        if deterministic:
            raise ConfigError(
                "deterministic needs kernels that order sums themselves; "
                f"leave PAGODA_KERNELS={environment.kernels} out."
            )
        return cls()

    @property
    def layers(self) -> LayerKernels:
        """Kernels for layers: plain torch's, unless the backend has its own."""
        layers: LayerKernels = lookup("kernels", "reference")().layers
        return layers

    @property
    def recorder(self) -> StepRecorder | None:
        """What records steps to replay them; None if they cannot be."""
        return None
