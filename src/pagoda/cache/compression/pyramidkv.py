"""Keeps what the last tokens attend to, fewer tokens from layer to layer (PyramidKV, arXiv 2406.02069)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagoda.cache.compression.base import LayerView, ScoredPolicy
from pagoda.cache.compression.snapkv import check_window, seen_by_window
from pagoda.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from pagoda.cache.compression.shares import Share


@dataclass(frozen=True, kw_only=True)
class PyramidKV(ScoredPolicy):
    """SnapKV's scores. Budgets behind the window fall linearly from the first layer to the last one.

    The last layer has a `beta`-th of the mean, and the first one as much more; 20 is the authors' number. Where that is
    more than a prompt has, the first layer keeps all of it, and where a prompt has less than twice the mean, all layers
    keep the same.
    """

    window: int = 32
    kernel: int = 5
    beta: float = 20

    def __post_init__(self) -> None:
        check_window(self.name, self.window, self.kernel)
        if not self.beta >= 1:
            raise ConfigError(f"pyramidkv has beta={self.beta:g}; give at least 1, such as 20.")
        super().__post_init__()

    @property
    def name(self) -> str:
        return "pyramidkv"

    @property
    def num_queries(self) -> int:
        return self.window

    @property
    def is_even(self) -> bool:
        return False

    def scores(self, layer: LayerView) -> torch.Tensor:
        return seen_by_window(layer, self.window, self.kernel)

    def pages_of_layers(self, num_layers: int, share: Share) -> list[int]:
        mean, most = share.num_tokens - self.window, share.most_pages * share.page_tokens - self.window
        if num_layers == 1 or share.num_slots < 2 * mean:
            return [share.num_pages] * num_layers
        first = min(2 * mean - mean / self.beta, most)
        step = 2 * (first - mean) / (num_layers - 1)
        wanted = [self.window + first - step * layer for layer in range(num_layers)]
        return share.whole_pages(wanted, self.least_tokens)
