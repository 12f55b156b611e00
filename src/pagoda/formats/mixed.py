"""The formats that keep keys in one format and values in another: k8v4, and any pair of bf16 and codes.

Keys decide which tokens count, values only what they say, so keys are given more bits (KIVI, arXiv 2402.02750).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagoda.errors import ConfigError
from pagoda.formats.base import Format
from pagoda.formats.plain import BF16, PlainFormat
from pagoda.formats.rotated import INT4
from pagoda.formats.scaled import INT8
from pagoda.layouts.base import Axis, Plane

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MixedFormat(Format):
    """`key` for planes that scores sum over channels, `value` for those that outputs sum over tokens."""

    short_name: str
    key: Format
    value: Format

    @property
    def name(self) -> str:
        return self.short_name

    def of(self, plane: Plane) -> Format:
        return self._along(plane.reduced)

    def _along(self, axis: Axis) -> Format:
        return self.key if axis is Axis.CHANNEL else self.value

    @property
    def has_codes(self) -> bool:
        return self.key.has_codes or self.value.has_codes

    @property
    def query_step(self) -> float:
        return self.key.query_step

    def width_multiple(self, axis: Axis) -> int:
        return self._along(axis).width_multiple(axis)

    def obstacle(self, plane: Plane) -> str | None:
        if plane.value_width:
            return f"its {plane.name} rows are keys and values at once"
        return self.of(plane).obstacle(plane)

    def plane_nbytes(self, plane: Plane, page_tokens: int) -> int:
        return self.of(plane).plane_nbytes(plane, page_tokens)

    def error_bound(self, values: torch.Tensor, plane: Plane) -> torch.Tensor:
        return self.of(plane).error_bound(values, plane)

    def write(
        self, data: torch.Tensor, plane: Plane, pages: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor
    ) -> None:
        self.of(plane).write(data, plane, pages, offsets, values)

    def decode(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        return self.of(plane).decode(data, plane)

    def token_views(self, data: torch.Tensor, plane: Plane) -> tuple[torch.Tensor, ...]:
        return self.of(plane).token_views(data, plane)


def mix(key: Format, value: Format) -> Format:
    """Keys in one format, values in another; ConfigError for a pair that kernels cannot multiply."""
    if key == value:
        return key
    for each in (key, value):
        if isinstance(each, MixedFormat) or (isinstance(each, PlainFormat) and each != BF16):
            raise ConfigError(
                f"Pages cannot hold keys in {key.name} and values in {value.name}: mix bf16 and formats of codes, as "
                "in int8/int4."
            )
    if (key, value) == (K8V4.key, K8V4.value):
        return K8V4
    return MixedFormat(f"{key.name}/{value.name}", key, value)


K8V4 = MixedFormat("k8v4", key=INT8, value=INT4)
