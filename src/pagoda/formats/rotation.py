"""How a layer turns keys by their positions (rotary embedding, arXiv 2104.09864): which channels, and by what angles.

Knows one head at a time, the same for all heads of a layer. Does not know how a model was found to do so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PairRotation:
    """Which channels of a head a layer turns, and by what angle per token: int64 [pairs, 2], fp64 [pairs]."""

    channels: torch.Tensor
    frequencies: torch.Tensor

    def averaged(self, values: torch.Tensor) -> torch.Tensor:
        """`values` [..., pairs, 2], equal for both channels of every pair that turns."""
        import torch

        return torch.where(self.frequencies[:, None] == 0, values, values.mean(dim=-1, keepdim=True))

    def turned(self, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """`keys` [tokens, heads, width] turned by their angles at `positions` [tokens]."""
        import torch

        angles = torch.outer(positions.double(), self.frequencies)
        cosines, sines = (each.float()[:, None] for each in (angles.cos(), angles.sin()))
        first, second = (keys[..., channel] for channel in self.channels.unbind(-1))
        turned = keys.clone()
        turned[..., self.channels[:, 0]] = first * cosines - second * sines
        turned[..., self.channels[:, 1]] = second * cosines + first * sines
        return turned
