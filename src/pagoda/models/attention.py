"""The attention function Hugging Face models call instead of their own: it stores and reads pages.

Knows one step: which layer pages, rule and page tables belong to each attention call, in call order. The step in
flight is the one ambient value of Pagoda, a context variable, because some families drop keyword arguments on the way
down. Does not know how sites are found (discovery), what pages mean (cache) or how scores are computed (kernels).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from pagoda.errors import UnsupportedModelError
from pagoda.kernels.base import AttentionKernels, AttentionRule, GroupView, LayerPages
from pagoda.kernels.layers import LayerKernels
from pagoda.layouts.spec import Reach
from pagoda.models.states import StepStates

ATTENTION_NAME = "pagoda"


@dataclass(frozen=True)
class BoundSite:
    """One attention call of the model, bound to its pages and kernels. `group` indexes the views of a step."""

    rule: AttentionRule
    layer: LayerPages
    group: int
    writes: bool
    kernels: AttentionKernels

    @property
    def is_cross(self) -> bool:
        """Whether its pages hold what an encoder made of its input."""
        return self.rule.reach is Reach.ENCODER


class EncoderTokens:
    """What an encoder made of inputs that are in no pages yet, and where their keys and values go.

    `hidden` [tokens, width] has one input after the other, which `view` takes for sequences of new tokens.
    """

    def __init__(self, hidden: torch.Tensor, view: GroupView) -> None:
        self.hidden = hidden
        self.view = view
        # A byte for each input: zero once NaN or infinity was stored for it.
        self.finite = torch.ones(len(view.context_lengths), dtype=torch.uint8, device=hidden.device)


class QueryWatch(Protocol):
    """Sees the queries of a step."""

    def saw(self, call: int, rule: AttentionRule, query: torch.Tensor, sinks: torch.Tensor | None) -> None:
        """Attention call number `call` has `query` [rows, heads, width], and `sinks` [heads], if any.

        The keys and values of all rows are in the pages.
        """


class PagedStep:
    """One forward pass over packed sequences: `sites` in call order, `views` by layer group.

    `layers` are the kernels of what is computed between attention calls.

    `states` are those of recurrent layers, if the model has any, and `encoder` the tokens of new encoder inputs.
    """

    def __init__(
        self,
        layers: LayerKernels,
        sites: tuple[BoundSite, ...],
        views: tuple[GroupView, ...],
        states: StepStates | None = None,
        encoder: EncoderTokens | None = None,
    ) -> None:
        self.layers = layers
        self.states = states
        self.encoder = encoder
        self.views = views
        self.watch: QueryWatch | None = None
        self._sites = sites
        self._rows = int(views[0].query_starts[-1])
        self._calls = 0
        self._state_calls = 0
        self.num_sequences = len(views[0].context_lengths)
        # What layers will give when they are called with certain rows, computed before (joint.py, sums.py).
        self.ahead: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
        # A byte for each sequence: zero once NaN or infinity was stored for it.
        device = sites[0].layer.pages.device if sites else None
        self.finite = torch.ones(self.num_sequences, dtype=torch.uint8, device=device)

    def padded(self, size: int) -> PagedStep:
        """This step of decoding with so many sequences, of which those that it has not have nothing to compute.

        Their rows are there, and what is computed for them is anything.
        """
        views = tuple(_padded(view, size - self.num_sequences) for view in self.views)
        other = PagedStep(self.layers, self._sites, views)
        other._rows = size
        other.num_sequences = self.num_sequences
        self.finite = other.finite[: self.num_sequences]
        return other

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor | None,
        scale: float | None = None,
        sinks: torch.Tensor | None = None,
        biases: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Answer the next attention call: all tensors are [rows, heads, width] of the step's new tokens.

        Keys and values for cross-attention are those of new encoder tokens. There are no values where keys are values
        too (`Plane.value_width`).

        Sites are keyed by the ordinal of the call: a layer may attend twice, or be called again with other weights.
        """
        if self._calls == len(self._sites):
            raise UnsupportedModelError(f"The model attends more than the {len(self._sites)} times found at load.")
        site = self._sites[self._calls]
        self._check(site, query, key, scale)
        view = self.views[site.group]
        if site.writes and len(key):
            tables, finite = (view, self.finite) if not site.is_cross else self._new_encoder_tokens()
            values = None if value is None else _unit_stride(value)
            site.kernels.store(_unit_stride(key), values, site.layer, tables, finite)
        if self.watch is not None:
            self.watch.saw(self._calls, site.rule, query, sinks)
        self._calls += 1
        return site.kernels.attend(_unit_stride(query), site.layer, view, site.rule, sinks, biases)

    def next_states(self, layer: int) -> StepStates:
        """The states for the next recurrent layer, which must be the one numbered `layer`."""
        if self.states is None or layer != self._state_calls:
            raise UnsupportedModelError(
                "The model does not run through its recurrent layers in the order of its modules."
            )
        self._state_calls += 1
        return self.states

    def begin(self) -> None:
        self._calls = self._state_calls = 0
        self.ahead.clear()

    def finish(self) -> None:
        """Check that the model attended and kept state as often as it did when it was discovered."""
        if self.states is not None and self._state_calls != len(self.states.layers):
            raise UnsupportedModelError(
                f"The model ran {self._state_calls} recurrent layers in a step, but {len(self.states.layers)} at load."
            )
        if self._calls != len(self._sites):
            raise UnsupportedModelError(
                f"The model attended {self._calls} times in one step, but {len(self._sites)} times at load."
            )

    def _new_encoder_tokens(self) -> tuple[GroupView, torch.Tensor]:
        assert self.encoder is not None, "checked before"
        return self.encoder.view, self.encoder.finite

    def _check(self, site: BoundSite, query: torch.Tensor, key: torch.Tensor, scale: float | None) -> None:
        num_keys = self._rows if not site.is_cross else len(self.encoder.hidden) if self.encoder else 0
        if query.shape[0] != self._rows or key.shape[0] != num_keys:
            raise UnsupportedModelError(
                f"Attention call {self._calls} has {query.shape[0]} queries and {key.shape[0]} keys in a step of "
                f"{self._rows} tokens: this model does not attend from each token to the tokens before it, or to an "
                "encoder's."
            )
        if scale is not None and scale != site.rule.scale:
            raise UnsupportedModelError(
                f"Attention call {self._calls} scales scores by {scale}, but by {site.rule.scale} at load: "
                "Pagoda needs a scale that does not depend on the input."
            )


_step_in_flight: ContextVar[PagedStep | None] = ContextVar("pagoda_step", default=None)


def step_in_flight() -> PagedStep | None:
    """The step that a layer is called in, or None outside a step."""
    return _step_in_flight.get()


def step_of_call(module: torch.nn.Module, attention_mask: torch.Tensor | None) -> PagedStep:
    """The step that an attention call of `module` belongs to; raises UnsupportedModelError if it brings a mask."""
    if attention_mask is not None:
        raise UnsupportedModelError(f"{type(module).__name__} builds an attention mask of its own, which pages ignore.")
    step = step_in_flight()
    if step is None:
        raise UnsupportedModelError("A model that attends through pages was called outside a step of the engine.")
    return step


def kernels_in_flight() -> LayerKernels | None:
    """The layers' kernels of the step in flight, or None outside a step."""
    step = step_in_flight()
    return None if step is None else step.layers


@contextmanager
def in_flight(step: PagedStep) -> Iterator[None]:
    """Let the attention calls of the enclosed forward reach `step` from its first site on; check their number."""
    step.begin()
    token = _step_in_flight.set(step)
    try:
        yield
    finally:
        _step_in_flight.reset(token)
    step.finish()


def paged_attention(  # noqa: PLR0913 - the signature is transformers'
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, heads, rows, key width]
    key: torch.Tensor,  # [1, KV heads, rows, key width]: the new tokens only, because transformers' cache is off
    value: torch.Tensor,  # [1, KV heads, rows, value width]
    attention_mask: torch.Tensor | None = None,
    *,
    scaling: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,  # [heads, distances], as `packed_decoder.py` makes them
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls. Window, chunk and soft cap come from discovery, not from the keywords of the call."""
    step = step_of_call(module, attention_mask)
    query, key, value = (packed[0].transpose(0, 1) for packed in (query, key, value))
    biases = position_bias if position_bias is not None and position_bias.numel() else None
    out = step.attend(query, key, value, scaling, s_aux, biases)
    return out.unsqueeze(0), None


def _padded(view: GroupView, count: int) -> GroupView:
    """With `count` sequences behind those of a view, without pages and without new rows."""
    starts, rows = view.page_starts, view.query_starts
    return replace(
        view,
        page_starts=torch.cat((starts, starts[-1:].expand(count))),
        query_starts=torch.cat((rows, rows[-1:].expand(count))),
        context_lengths=torch.nn.functional.pad(view.context_lengths, (0, count)),
        cell_starts=_with_rows(view.cell_starts, count),
        readings=_with_rows(view.readings, count),
    )


def _with_rows(table: torch.Tensor | None, count: int) -> torch.Tensor | None:
    """With `count` rows of zeros behind those of a table, if there is one."""
    return None if table is None else torch.nn.functional.pad(table, (0, 0, 0, count))


def _unit_stride(rows: torch.Tensor) -> torch.Tensor:
    return rows if rows.stride(-1) == 1 else rows.contiguous()


AttentionInterface.register(ATTENTION_NAME, paged_attention)
