"""Nemotron-H and Zamba-2 with time steps that have a lower limit in every step.

Transformers applies the limit where it scans several tokens and not where it computes one, so that the same tokens
leave another state when they come one by one. The models were trained with it. Here it moves to where both begin, the
projection: softplus(x + bias) >= limit just where x >= log(exp(limit) - 1) - bias.
"""

from __future__ import annotations

from typing import Any

import torch

from pagoda.models.recurrent import mixers


class TimeStepFloor:
    """Raises the time steps, the last columns of what a mixer's input projection gives."""

    def __init__(self, floor: torch.Tensor) -> None:
        self._floor = floor

    def __call__(self, _projection: torch.nn.Module, _args: Any, projected: torch.Tensor) -> torch.Tensor:
        num_heads = len(self._floor)
        steps = torch.maximum(projected[..., -num_heads:], self._floor.to(projected.dtype))
        return torch.cat((projected[..., :-num_heads], steps), dim=-1)


def limit_time_steps(network: Any) -> None:
    """Give every mixer with a limit above zero the hook."""
    found: list[tuple[Any, str]] = [*mixers(network)]
    for mixer, _ in found:
        limit = float(mixer.time_step_limit[0])
        if limit > 0:
            floor = torch.log(torch.expm1(torch.tensor(limit))) - mixer.dt_bias.data.float()
            mixer.in_proj.register_forward_hook(TimeStepFloor(floor))
