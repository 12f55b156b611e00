"""A text run through a model as one prompt, over pages of its own: to look at what the model does, not to serve.

Knows models, pages and their formats. Does not know requests, schedules or prefix sharing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TypeVar

import torch

from pagoda.cache.pool import PagePool
from pagoda.formats.constants import KeyConstants, PageTurns
from pagoda.formats.page import PageGeometry
from pagoda.formats.state import StateGeometry
from pagoda.kernels.base import GroupView, Kernels
from pagoda.layouts.spec import SiteSlot
from pagoda.models.attention import PagedStep
from pagoda.models.model import Model
from pagoda.models.sites import bind_sites
from pagoda.models.states import StepStates, typed_states

Step = TypeVar("Step", bound=PagedStep)


def can_run(model: Model) -> bool:
    """Whether a text alone makes the model run, which an encoder's input would not, and layers attend."""
    return model.encoder is None and bool(model.spec.groups)


class Passage:
    """Room for a text of up to `most_tokens`, whose first token stands at `position`. It can be filled again and again.

    `constants` are those of layers that keep their keys without; then the position is a multiple of a page's tokens.
    """

    def __init__(
        self,
        model: Model,
        kernels: Kernels,
        geometries: tuple[PageGeometry, ...],
        most_tokens: int,
        constants: Mapping[SiteSlot, KeyConstants] | None = None,
        position: int = 0,
    ) -> None:
        self._model, self._layers, self._position = model, kernels.layers, position
        self._page_tokens = geometries[0].page_tokens
        pages = [
            PagePool(geometry, -(-most_tokens // self._page_tokens), device=model.device).pages
            for geometry in geometries
        ]
        shifted = _shifted(constants or {}, position // self._page_tokens)
        self._sites = bind_sites(model.discovered, kernels, geometries, pages, shifted).sites
        states = StateGeometry(model.spec.states, model.dtype.itemsize)
        self._states = (
            typed_states(states, PagePool(states, 1, device=model.device).pages, model.dtype)
            if model.spec.states
            else None
        )

    def logits(self, token_ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """fp32 [rows, vocabulary] of those `rows` of `token_ids` [tokens]."""
        return self.run(token_ids, rows, PagedStep)[0]

    @torch.inference_mode()
    def run(self, token_ids: torch.Tensor, rows: torch.Tensor, make_step: type[Step]) -> tuple[torch.Tensor, Step]:
        """`logits`, and the step that computed them."""
        return self._run(token_ids, 0, rows, make_step)

    @torch.inference_mode()
    def logits_in_chunks(self, token_ids: torch.Tensor, num_tokens: Sequence[int]) -> torch.Tensor:
        """The logits of all tokens, computed so many at a time."""
        ends = [*accumulate(num_tokens)]
        return torch.cat(
            [
                self._run(token_ids[end - count : end], end - count, torch.arange(count), PagedStep)[0]
                for end, count in zip(ends, num_tokens, strict=True)
            ]
        )

    @torch.inference_mode()
    def hidden_states(self, token_ids: torch.Tensor, num_before: int) -> torch.Tensor:
        """fp32 [tokens, width] of tokens behind `num_before` others, which were computed before."""
        step, positions = self._step(len(token_ids), num_before, PagedStep)
        return self._model.hidden_states(token_ids, positions, step)

    def _run(
        self, token_ids: torch.Tensor, num_before: int, rows: torch.Tensor, make_step: type[Step]
    ) -> tuple[torch.Tensor, Step]:
        """Tokens behind `num_before` others."""
        step, positions = self._step(len(token_ids), num_before, make_step)
        return self._model.forward(token_ids, positions, rows, step).float(), step

    def _step(self, count: int, num_before: int, make_step: type[Step]) -> tuple[Step, torch.Tensor]:
        """For `count` tokens behind `num_before` others, and their positions."""
        length = num_before + count
        views = (_view(-(-length // self._page_tokens), length, count),) * len(self._model.spec.groups)
        states = None if self._states is None else StepStates(self._states, _view(1, length, count), [()])
        step = make_step(self._layers, self._sites, views, states)
        return step, torch.arange(self._position + num_before, self._position + length)


def _view(num_pages: int, length: int, num_new: int) -> GroupView:
    """One sequence, whose pages lie in order."""
    starts, spans, lengths = (torch.tensor(values).int() for values in ([0, num_pages], [0, num_new], [length]))
    return GroupView(torch.arange(num_pages).int(), starts, spans, lengths)


def _shifted(constants: Mapping[SiteSlot, KeyConstants], first_page: int) -> Mapping[SiteSlot, KeyConstants]:
    """Constants for pages that are numbered from `first_page` on."""
    if first_page == 0:
        return constants
    tables = {id(each.turns): PageTurns(each.turns.table[..., first_page:].contiguous()) for each in constants.values()}
    return {site: replace(each, turns=tables[id(each.turns)]) for site, each in constants.items()}
