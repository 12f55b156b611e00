"""A text run through a model as one prompt, over pages of its own: to look at what the model does, not to serve.

Knows models, pages and their formats. Does not know requests, schedules or prefix sharing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch

from pagoda.cache.pool import PagePool
from pagoda.formats.constants import KeyConstants, PageTurns
from pagoda.formats.page import PageGeometry
from pagoda.kernels.base import GroupView, Kernels, LayerPages
from pagoda.layouts.spec import SiteSlot
from pagoda.models.attention import BoundSite, PagedStep
from pagoda.models.model import Model

Step = TypeVar("Step", bound=PagedStep)


def can_run(model: Model) -> bool:
    """Whether a text alone makes the model run: no encoder, no recurrent states, and layers that attend."""
    return model.encoder is None and not model.spec.states and bool(model.spec.groups)


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
        self._model, self._kernels, self._position = model, kernels, position
        self._page_tokens = geometries[0].page_tokens
        pools = [PagePool(geometry, -(-most_tokens // self._page_tokens)) for geometry in geometries]
        shifted = _shifted(constants or {}, position // self._page_tokens)
        self._sites = tuple(
            BoundSite(
                rule,
                LayerPages(pools[site.group].pages, geometries[site.group], site.layer, shifted.get(site)),
                site.group,
                site.writes,
            )
            for rule, site in zip(model.rules, model.spec.sites, strict=True)
        )

    def logits(self, token_ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """fp32 [rows, vocabulary] of those `rows` of `token_ids` [tokens]."""
        return self.run(token_ids, rows, PagedStep)[0]

    @torch.inference_mode()
    def run(self, token_ids: torch.Tensor, rows: torch.Tensor, make_step: type[Step]) -> tuple[torch.Tensor, Step]:
        """`logits`, and the step that computed them."""
        length = len(token_ids)
        pages = torch.arange(-(-length // self._page_tokens)).int()
        spans = [torch.tensor(values).int() for values in ([0, len(pages)], [0, length], [length])]
        views = (GroupView(pages, *spans),) * len(self._model.spec.groups)
        step = make_step(self._kernels, self._sites, views)
        positions = torch.arange(self._position, self._position + length)
        return self._model.forward(token_ids, positions, rows, step).float(), step


def _shifted(constants: Mapping[SiteSlot, KeyConstants], first_page: int) -> Mapping[SiteSlot, KeyConstants]:
    """Constants for pages that are numbered from `first_page` on."""
    if first_page == 0:
        return constants
    tables = {id(each.turns): PageTurns(each.turns.table[..., first_page:].contiguous()) for each in constants.values()}
    return {site: replace(each, turns=tables[id(each.turns)]) for site, each in constants.items()}
