"""Keeps tokens drawn by lot: what every other policy must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagoda.cache.compression.base import LayerView, ScoredPolicy

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class RandomTokens(ScoredPolicy):
    """The same tokens for the same seed, layer and length. The last token is always kept."""

    window: int = 1
    seed: int = 0

    @property
    def name(self) -> str:
        return "random"

    def scores(self, layer: LayerView) -> torch.Tensor:
        import torch

        generator = torch.Generator().manual_seed(hash((self.seed, layer.number, layer.num_slots)) & (2**63 - 1))
        return torch.rand(layer.num_heads, layer.num_slots, generator=generator, device=generator.device)
