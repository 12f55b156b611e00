"""The formats that store each number by itself: fp32, fp16, bf16, in 32-bit words (formats/words.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagoda.formats.base import Format
from pagoda.formats.words import by_token, merged, put_tokens
from pagoda.layouts.base import Axis, Plane

if TYPE_CHECKING:
    import torch

WORD_NBYTES = 4


@dataclass(frozen=True)
class PlainFormat(Format):
    """Each number rounded to `dtype_name`."""

    short_name: str
    dtype_name: str
    itemsize: int
    mantissa_bits: int

    @property
    def name(self) -> str:
        return self.short_name

    @property
    def word_elements(self) -> int:
        return WORD_NBYTES // self.itemsize

    def model_dtype(self) -> torch.dtype:
        return self.dtype()

    @property
    def has_codes(self) -> bool:
        return False

    def width_multiple(self, axis: Axis) -> int:
        return self.word_elements if axis is Axis.CHANNEL else 1

    def plane_nbytes(self, plane: Plane, page_tokens: int) -> int:
        return plane.elements_per_token * page_tokens * self.itemsize

    def error_bound(self, values: torch.Tensor, plane: Plane) -> torch.Tensor:  # noqa: ARG002
        """Half a unit in the last place (round to nearest)."""
        return values.abs() * 2.0 ** -(self.mantissa_bits + 1)

    def dtype(self) -> torch.dtype:
        """The torch type of one number."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype_name)
        return dtype

    def view(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        """View uint8 [..., plane_nbytes] token by token, as `by_token` does; writes go through."""
        return by_token(data.view(self.dtype()).unflatten(-1, (plane.num_heads, -1)), plane, self.word_elements)

    def write(
        self, data: torch.Tensor, plane: Plane, pages: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor
    ) -> None:
        put_tokens(self.view(data, plane), pages, offsets, values)

    def token_views(self, data: torch.Tensor, plane: Plane) -> tuple[torch.Tensor, ...]:
        return (self.view(data, plane),)

    def decode(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        return merged(self.view(data, plane))


FP32 = PlainFormat("fp32", "float32", itemsize=4, mantissa_bits=23)
FP16 = PlainFormat("fp16", "float16", itemsize=2, mantissa_bits=10)
BF16 = PlainFormat("bf16", "bfloat16", itemsize=2, mantissa_bits=7)


def own_format(dtype: torch.dtype) -> PlainFormat:
    """The one that keeps numbers of this type as they are."""
    return next(each for each in (FP32, FP16, BF16) if each.dtype() is dtype)
