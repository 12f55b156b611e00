"""Binds the attention calls of a model to the pages and kernels that answer them, once, when pages are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from pagoda.cache.summaries import KeySummaries
from pagoda.formats.constants import KeyConstants, constants_on
from pagoda.formats.page import PageGeometry
from pagoda.kernels.base import Kernels, LayerPages
from pagoda.kernels.choice import KernelChoice, choose_for
from pagoda.layouts.spec import SiteSlot
from pagoda.models.attention import BoundSite
from pagoda.models.discovery import Discovered

NO_SUMMARIES: Mapping[int, KeySummaries] = MappingProxyType({})


@dataclass(frozen=True)
class BoundSites:
    """Every attention call, in call order, and what each layer group attends with."""

    sites: tuple[BoundSite, ...]
    choice: KernelChoice


def bind_sites(
    discovered: Discovered,
    backend: Kernels,
    geometries: Sequence[PageGeometry],
    pages: Sequence[torch.Tensor],
    constants: Mapping[SiteSlot, KeyConstants],
    summaries: Mapping[int, KeySummaries] = NO_SUMMARIES,
) -> BoundSites:
    """The calls of a model on the `pages` of its groups; `constants` are what the keys of layers are kept without.

    Groups with `summaries` can read pages in part.

    Raises ConfigError if `backend` cannot serve a group and nothing may stand in for it.
    """
    slots = discovered.spec.sites
    moved = constants_on(pages[0].device, constants) if pages else {}
    # A call that stores nothing reads what another stored, and with what that was kept without.
    layers = {
        (slot.group, slot.layer): LayerPages(
            *(pages[slot.group], geometries[slot.group], slot.layer, moved.get(slot)),
            summaries[slot.group].of_layer(slot.layer) if slot.group in summaries else None,
        )
        for slot in slots
        if slot.writes
    }
    uses = discovered.uses
    groups = tuple(
        choose_for(
            backend,
            geometry.group,
            [
                (layers[slot.group, slot.layer], use)
                for slot, use in zip(slots, uses, strict=True)
                if slot.group == index
            ],
        )
        for index, geometry in enumerate(geometries)
    )
    sites = tuple(
        BoundSite(use.rule, layers[slot.group, slot.layer], slot.group, slot.writes, groups[slot.group].kernels)
        for slot, use in zip(slots, uses, strict=True)
    )
    return BoundSites(sites, KernelChoice(backend, groups))
