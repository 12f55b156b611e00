"""Drops what the last token attends to least, the same in all heads of a layer (TOVA, arXiv 2401.06104)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagoda.cache.compression.base import LayerView, ScoredPolicy

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class TOVA(ScoredPolicy):
    """The paper drops a token at every step (`every=1`); every 32 costs a thirty-second of the time for that."""

    every: int = 32

    @property
    def name(self) -> str:
        return "tova"

    @property
    def num_queries(self) -> int:
        return 1

    def scores(self, layer: LayerView) -> torch.Tensor:
        return layer.mass.mean(dim=(0, 1)).expand(layer.num_heads, -1)
