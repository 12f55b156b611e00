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

    Defaults are those of the authors' class but for the budget. Scores depend on the question if it stands there: not
    if the prefix before it is compressed (`after`).
    """

    window: int = 32
    kernel: int = 5

    def __post_init__(self) -> None:
        check_window(self.name, self.window, self.kernel)
        super().__post_init__()

    @property
    def name(self) -> str:
        return "snapkv"

    @property
    def num_queries(self) -> int:
        return self.window

    def scores(self, layer: LayerView) -> torch.Tensor:
        return seen_by_window(layer, self.window, self.kernel)


def check_window(name: str, window: int, kernel: int) -> None:
    """Raise ConfigError unless a policy called `name` can look through such a window."""
    if window < 1 or not 1 <= kernel <= MOST_NEIGHBOURS or kernel % 2 == 0:
        raise ConfigError(
            f"{name} needs a window of at least 1 token and an odd kernel, such as 5, of at most {MOST_NEIGHBOURS}."
        )


def seen_by_window(layer: LayerView, window: int, kernel: int) -> torch.Tensor:
    """What the last `window` queries attend to before them, averaged over all but tokens: [KV heads, tokens]."""
    from torch.nn.functional import avg_pool1d

    seen = layer.mass[..., : layer.num_slots - window] / window
    return avg_pool1d(seen, kernel, stride=1, padding=kernel // 2).mean(dim=1)
