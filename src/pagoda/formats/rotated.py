"""The formats that keep rows rotated: int4 has its keys so, int4_rotated its values too.

A channel whose numbers are far larger than the others' takes the codes of its row for itself, as keys of some models
do. The Hadamard transform, orthonormal and its own inverse, spreads it over all channels. Products of rotated queries
and keys are those of the rows as they were, so kernels rotate queries and results, never pages (QuaRot, arXiv
2404.00456).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagoda.formats.base import Format
from pagoda.formats.int4 import INT4_PLAIN
from pagoda.layouts.base import Axis, Plane

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RotatedFormat(Format):
    """Rows as `inner` keeps them; planes summed along `axes` transformed.

    A transform takes in as many channels as the largest power of two that divides the width.
    """

    short_name: str
    inner: Format
    axes: frozenset[Axis]

    @property
    def name(self) -> str:
        return self.short_name

    def rotated_channels(self, plane: Plane) -> int:
        if plane.reduced not in self.axes:
            return 1
        width = math.gcd(plane.width, plane.value_width)
        return width & -width

    def group_channels(self, plane: Plane) -> int:
        return self.inner.group_channels(plane)

    @property
    def query_step(self) -> float:
        return self.inner.query_step

    def width_multiple(self, axis: Axis) -> int:
        return self.inner.width_multiple(axis)

    def obstacle(self, plane: Plane) -> str | None:
        return self.inner.obstacle(plane)

    def plane_nbytes(self, plane: Plane, page_tokens: int) -> int:
        return self.inner.plane_nbytes(plane, page_tokens)

    def error_bound(self, values: torch.Tensor, plane: Plane) -> torch.Tensor:
        """The length of the errors of the rotated run, and the rounding of two transforms."""
        channels = self.rotated_channels(plane)
        rotated: torch.Tensor = self.inner.error_bound(hadamard(values, channels), plane).unflatten(-1, (-1, channels))
        bound: torch.Tensor = rotated.norm(dim=-1, keepdim=True).expand_as(rotated).flatten(-2)
        return bound + values.abs().amax(dim=-1, keepdim=True) * (channels * 2.0**-20)

    def write(
        self, data: torch.Tensor, plane: Plane, pages: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor
    ) -> None:
        self.inner.write(data, plane, pages, offsets, hadamard(values, self.rotated_channels(plane)))

    def token_views(self, data: torch.Tensor, plane: Plane) -> tuple[torch.Tensor, ...]:
        return self.inner.token_views(data, plane)

    def decode(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        return hadamard(self.inner.decode(data, plane), self.rotated_channels(plane))

    def decode_kept(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        return self.inner.decode(data, plane)


def hadamard(rows: torch.Tensor, channels: int) -> torch.Tensor:
    """The orthonormal transform of each run of `channels`, a power of two, of `rows` [..., width], as fp32.

    Sums are taken in the order of `csrc/hadamard.h`, so that both write the same bytes.
    """
    import torch

    shape = rows.shape
    rows = rows.float().reshape(-1, channels)
    distance = 1
    while distance < channels:
        first, second = rows.unflatten(-1, (-1, 2, distance)).unbind(-2)
        rows = torch.stack((first + second, first - second), dim=-2).flatten(-3)
        distance *= 2
    rotated: torch.Tensor = rows * (1 / math.sqrt(channels))
    return rotated.reshape(shape)


INT4 = RotatedFormat("int4", INT4_PLAIN, frozenset({Axis.CHANNEL}))
INT4_ROTATED = RotatedFormat("int4_rotated", INT4_PLAIN, frozenset(Axis))
