"""Keeps what all queries so far attended to most, and the most recent tokens (H2O, arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pagoda.cache.compression.base import LayerView, ScoredPolicy
from pagoda.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class H2O(ScoredPolicy):
    """Weights of attention are added up over all queries, of the prompt and of what is generated, and over their heads.

    The share `recent` of the budget, a half as in the paper, is for the last tokens, and never fewer than `window`.
    What a dropped token was attended to is forgotten. The paper drops tokens at every step (`every=1`) and keeps a
    fifth of the prompt (`share=0.2`). Early tokens are seen by more queries, and sums favour them.
    """

    every: int = 32
    recent: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.recent < 1:
            raise ConfigError(f"h2o has recent={self.recent:g}; give at least 0 and less than 1 of the budget.")
        super().__post_init__()

    @property
    def name(self) -> str:
        return "h2o"

    @property
    def observer(self) -> Self:
        return self

    def num_recent(self, count: int) -> int:
        return max(self.window, int(self.recent * count))

    def observe(self, layer: LayerView, before: torch.Tensor | None) -> torch.Tensor:
        sums = layer.mass.sum(dim=1)
        if before is not None:
            sums[:, : before.shape[1]] += before
        return sums

    def left_of(self, observed: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        return observed.gather(1, kept)

    def scores(self, layer: LayerView) -> torch.Tensor:
        first, *others = layer.observed
        return sum(others, start=first)
