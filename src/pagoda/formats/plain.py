"""The formats that store each number by itself: fp32, fp16, bf16.

A 32-bit word holds the numbers that follow each other along the axis attention sums over: two channels of a key, two
tokens of a value (one of either in fp32). Words of neighbouring tokens (keys) or channels (values) lie side by side:

    key    [heads, width / n, page_tokens, n]      value    [heads, page_tokens / n, width, n]      n = 4 / itemsize

This is the operand order of the bf16 dot and matrix instructions, so kernels load pages without shuffling them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagoda.formats.base import Format
from pagoda.layouts.base import Axis, Plane

if TYPE_CHECKING:
    import torch

WORD_NBYTES = 4


@dataclass(frozen=True)
class PlainFormat(Format):
    """Each number rounded to `dtype_name`; writing one never touches another, so a page is filled in place."""

    short_name: str
    dtype_name: str
    itemsize: int
    mantissa_bits: int

    @property
    def name(self) -> str:
        return self.short_name

    @property
    def relative_error_bound(self) -> float:
        """Half a unit in the last place (round to nearest)."""
        return 2.0 ** -(self.mantissa_bits + 1)

    @property
    def word_elements(self) -> int:
        return WORD_NBYTES // self.itemsize

    def plane_nbytes(self, plane: Plane, page_tokens: int) -> int:
        return plane.elements_per_token * page_tokens * self.itemsize

    def dtype(self) -> torch.dtype:
        """The torch type of one number."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype_name)
        return dtype

    def view(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        """View uint8 [..., plane_nbytes] as [..., heads, tokens / a, a, width / b, b]; writes go through.

        Token t is at [t // a, t % a] and channel c at [c // b, c % b], with a, b = 1, n for keys and n, 1 for values.
        """
        numbers = data.view(self.dtype())
        page_tokens = numbers.shape[-1] // plane.elements_per_token
        count = self.word_elements
        if plane.reduced is Axis.CHANNEL:
            words: torch.Tensor = numbers.unflatten(-1, (plane.num_heads, plane.width // count, page_tokens, count))
            return words.transpose(-3, -2).unsqueeze(-3)
        words = numbers.unflatten(-1, (plane.num_heads, page_tokens // count, plane.width, count))
        return words.transpose(-2, -1).unsqueeze(-1)

    def encode(self, values: torch.Tensor, plane: Plane) -> torch.Tensor:
        import torch

        data = torch.empty(self.plane_nbytes(plane, values.shape[1]), dtype=torch.uint8, device=values.device)
        target = self.view(data, plane)
        target.copy_(values.reshape(target.shape))
        return data

    def decode(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        return self.view(data, plane).float().flatten(-2).flatten(-3, -2)


FP32 = PlainFormat("fp32", "float32", itemsize=4, mantissa_bits=23)
FP16 = PlainFormat("fp16", "float16", itemsize=2, mantissa_bits=10)
BF16 = PlainFormat("bf16", "bfloat16", itemsize=2, mantissa_bits=7)
