"""Keeps the first tokens and the last ones, for texts without end (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagoda.cache.compression.base import MOST_TOKENS, LayerView, Policy
from pagoda.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Streaming(Policy):
    """The first `sinks` tokens, which much attention goes to whatever they are, and then the last, both in whole pages.

    Sinks follow right before the last tokens, as in the paper: their keys are turned by as many positions as were left
    out between. All others stay where they are, so that no query ever looks farther back than the budget and `every`,
    and a sequence may be longer than the model's context.
    """

    sinks: int = 4
    every: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.sinks <= MOST_TOKENS:
            raise ConfigError(f"streaming has sinks={self.sinks}; give how many of the first tokens are kept.")
        if self.every < 1:
            raise ConfigError("streaming goes on while more is generated; give every=1 or more.")
        super().__post_init__()

    @property
    def name(self) -> str:
        return "streaming"

    @property
    def num_sinks(self) -> int:
        return self.sinks

    @property
    def needs_rotation(self) -> bool:
        return True

    @property
    def least_tokens(self) -> int:
        return self.sinks + 1

    @property
    def _least_reason(self) -> str:
        return f"it always keeps the first {self.sinks} tokens"

    def kept(self, layer: LayerView, count: int) -> torch.Tensor:
        import torch

        last = torch.arange(layer.num_slots - count + self.sinks, layer.num_slots)
        return torch.cat((torch.arange(self.sinks), last)).expand(layer.num_heads, -1)
