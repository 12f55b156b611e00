"""Llama 4 on packed sequences: its attention temperature taken from positions instead of rows.

Layers without rotary embedding scale queries by a temperature that grows with the position (arXiv 2501.19399).
Transformers counts positions from the start of the row, which is right for one sequence per row only. The temperature
moves first after thousands of tokens, so a short test would not show it.
"""

from __future__ import annotations

from typing import Any

import torch


class PositionTemperature:
    """Scales the queries of one decoder layer; hooks feed it the layer's positions and its query projection."""

    def __init__(self, floor_scale: float, attention_scale: float) -> None:
        self._floor_scale = floor_scale
        self._attention_scale = attention_scale
        self._positions: torch.Tensor | None = None

    def note_positions(self, _layer: torch.nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self._positions = kwargs["position_ids"]

    def scale_queries(self, _projection: torch.nn.Module, _args: Any, queries: torch.Tensor) -> torch.Tensor:
        assert self._positions is not None
        steps = torch.floor((self._positions.float() + 1.0) / self._floor_scale)
        temperature = torch.log1p(steps) * self._attention_scale + 1.0
        return (queries * temperature[..., None]).to(queries.dtype)


def take_temperature_from_positions(network: Any) -> None:
    """Replace the temperature of every layer that has one."""
    for layer in network.model.layers:
        attention = layer.self_attn
        if attention.use_rope or not attention.attn_temperature_tuning:
            continue
        attention.attn_temperature_tuning = False
        temperature = PositionTemperature(attention.floor_scale, attention.attn_scale)
        layer.register_forward_pre_hook(temperature.note_positions, with_kwargs=True)
        attention.q_proj.register_forward_hook(temperature.scale_queries)
