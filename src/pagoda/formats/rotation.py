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
    """Which channels of a head turn, and by what angle per token: int64 [pairs, 2], fp64 [pairs], on the CPU."""

    channels: torch.Tensor
    frequencies: torch.Tensor

    def averaged(self, values: torch.Tensor) -> torch.Tensor:
        """`values` [..., pairs, 2], equal for both channels of every pair that turns."""
        import torch

        return torch.where(self.frequencies[:, None] == 0, values, values.mean(dim=-1, keepdim=True))

    def turned(self, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """`keys` [tokens, heads, width] turned by their angles at `positions` [tokens]."""
        cosines, sines = (each.float()[:, None].to(keys.device) for each in self._turns(positions))
        first, second = (keys[..., channel] for channel in self.channels.unbind(-1))
        turned = keys.clone()
        turned[..., self.channels[:, 0]] = first * cosines - second * sines
        turned[..., self.channels[:, 1]] = second * cosines + first * sines
        return turned

    def mean_turn(self, positions: torch.Tensor, width: int) -> torch.Tensor:
        """What a row of `width` is multiplied by, fp32 [width, width], to be the mean of its turns at `positions`."""
        import torch

        cosines, sines = (each.mean(dim=0).float() for each in self._turns(positions))
        first, second = self.channels.unbind(-1)
        turn = torch.eye(width, device="cpu")
        turn[first, first] = turn[second, second] = cosines
        turn[first, second], turn[second, first] = sines, -sines
        return turn

    def _turns(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The cosines and sines of the angles at `positions`, fp64 [positions, pairs], on the CPU."""
        import torch

        angles = torch.outer(positions.cpu().double(), self.frequencies)
        return angles.cos(), angles.sin()
