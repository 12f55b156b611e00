"""Keeps tokens whose keys are short (arXiv 2406.11430): they are attended to more than those with long ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagoda.cache.compression.base import LayerView, ScoredPolicy
from pagoda.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Knorm(ScoredPolicy):
    """Needs no queries, so what it keeps of a prefix does not depend on what is asked after it."""

    window: int = 1

    def __post_init__(self) -> None:
        if self.critical:
            raise ConfigError("knorm takes no critical: its scores are not weights of attention.")
        super().__post_init__()

    @property
    def name(self) -> str:
        return "knorm"

    def scores(self, layer: LayerView) -> torch.Tensor:
        lengths: torch.Tensor = layer.keys.norm(dim=-1)
        return -lengths
