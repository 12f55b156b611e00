"""Which layers of a model can be compressed, why others cannot, and what policies get to see of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from pagoda.formats.rotation import PairRotation
from pagoda.kernels.base import AttentionKernels, AttentionUse, LayerPages, compaction_obstacle
from pagoda.kernels.compaction import Beside, LastQueries, StoredLayer, StoredTokens
from pagoda.layouts.spec import Reach, SiteSlot
from pagoda.models.attention import BoundSite
from pagoda.models.rotations import FoundRotation


@dataclass(frozen=True, eq=False)
class CompressibleLayer:
    """A layer whose tokens may lie anywhere, and the attention calls that read it.

    `projections` give what the results of these are multiplied by, as far as that is known. So is the `rotation` of its
    keys, once it was looked for.
    """

    slot: SiteSlot
    pages: LayerPages
    kernels: AttentionKernels
    calls: tuple[int, ...]
    projections: tuple[Callable[[], torch.Tensor], ...]
    rotation: PairRotation | None = None

    @property
    def is_projected(self) -> bool:
        """Whether it is known what the results of all calls are multiplied by."""
        return len(self.projections) == len(self.calls)

    def turning(self, found: Mapping[SiteSlot, FoundRotation]) -> Self:
        """The same once rotations are `found`."""
        turns = found.get(self.slot)
        return replace(self, rotation=turns.rotation if turns is not None and turns.is_explained else None)

    def seen(
        self,
        pages: torch.Tensor,
        num_slots: int,
        num_tokens: int,
        calls: Sequence[LastQueries],
        observed: Sequence[torch.Tensor] = (),
    ) -> StoredLayer:
        """What a policy sees of a sequence of `num_tokens`, of which `num_slots` are kept in `pages`."""
        tokens = StoredTokens(self.kernels, self.pages, pages, num_slots)
        return StoredLayer(tokens, calls, Beside(self.projections, observed, self.rotation, num_tokens))


def compressible_layers(
    sites: Sequence[BoundSite], uses: Sequence[AttentionUse], projections: Sequence[Callable[[], torch.Tensor] | None]
) -> tuple[dict[int, list[CompressibleLayer]], list[str]]:
    """The layers of every group that can be compressed, and why others cannot."""
    layers, obstacles = dict[int, list[CompressibleLayer]](), list[str]()
    for group in sorted({site.group for site in sites}):
        calls = [call for call, site in enumerate(sites) if site.group == group]
        found = [compaction_obstacle(sites[call].layer, uses[call]) for call in calls]
        if sites[calls[0]].rule.reach is not Reach.FULL:
            obstacles.append(f"layers of reach {sites[calls[0]].rule.reach.value} keep what their window needs")
        elif any(found):
            obstacles.append(next(filter(None, found)))
        else:
            by_layer: dict[int, list[int]] = {}
            for call in calls:
                by_layer.setdefault(sites[call].layer.layer, []).append(call)
            layers[group] = [_layer(sites, projections, each) for _, each in sorted(by_layer.items())]
    return layers, obstacles


def _layer(
    sites: Sequence[BoundSite], projections: Sequence[Callable[[], torch.Tensor] | None], calls: list[int]
) -> CompressibleLayer:
    site, found = sites[calls[0]], (projections[call] for call in calls)
    return CompressibleLayer(
        SiteSlot(site.group, site.layer.layer),
        site.layer,
        site.kernels,
        tuple(calls),
        tuple(each for each in found if each is not None),
    )
