"""Keeps what the last tokens of the prompt attend to, and its neighbours (SnapKV, arXiv 2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagoda.cache.compression.base import LayerView, ScoredPolicy
from pagoda.errors import ConfigError

if TYPE_CHECKING:
    import torch

MOST_NEIGHBOURS = 255


@dataclass(frozen=True, kw_only=True)
class SnapKV(ScoredPolicy):
    """Attention of the last `window` queries, averaged over these, `kernel` neighbours and the group of a KV head.

    Defaults are those of the authors' class but for the budget. Scores depend on the question, so pages are the
    sequence's own.
    """

    window: int = 32
    kernel: int = 5

    def __post_init__(self) -> None:
        if self.window < 1 or not 1 <= self.kernel <= MOST_NEIGHBOURS or self.kernel % 2 == 0:
            raise ConfigError(
                f"snapkv needs a window of at least 1 token and an odd kernel, such as 5, of at most {MOST_NEIGHBOURS}."
            )
        super().__post_init__()

    @property
    def name(self) -> str:
        return "snapkv"

    @property
    def num_queries(self) -> int:
        return self.window

    def scores(self, layer: LayerView) -> torch.Tensor:
        from torch.nn.functional import avg_pool1d

        seen = layer.mass[..., : layer.num_slots - self.window] / self.window
        return avg_pool1d(seen, self.kernel, stride=1, padding=self.kernel // 2).mean(dim=1)
