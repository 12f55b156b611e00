"""Keeps what the last tokens attend to, again and again while more are generated (MorphKV, arXiv 2503.00979)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagoda.cache.compression.base import LayerView, ScoredPolicy
from pagoda.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class MorphKV(ScoredPolicy):
    """Each of the last `window` queries weighs the tokens before the window; `fuse` is sum or max over them.

    Logits are summed over the group of a KV head, as the authors do. The paper drops tokens at every step (`every=1`).
    """

    window: int = 32
    every: int = 32
    fuse: str = "sum"

    def __post_init__(self) -> None:
        if self.window < 1 or self.fuse not in ("sum", "max"):
            raise ConfigError("morphkv needs a window of at least 1 token, and fuse=sum or fuse=max.")
        super().__post_init__()

    @property
    def name(self) -> str:
        return "morphkv"

    @property
    def num_queries(self) -> int:
        return self.window

    def scores(self, layer: LayerView) -> torch.Tensor:
        old = layer.num_slots - self.window
        if self.fuse == "sum":
            return layer.group_mass(old)
        return layer.group_logits[..., :old].softmax(dim=-1).amax(dim=1)
