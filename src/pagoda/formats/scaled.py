"""The formats that store a byte a number and a scale for each token and head: int8, fp8_e4m3, fp8_e5m2.

A head of a plane is its codes, four to a word (formats/words.py), then one bf16 scale per token. The scale is the
largest magnitude of the row over the largest code, rounded up, so that no code overflows. Codes are exact in bf16:
kernels multiply keys as they are and scale the scores. Where the processor multiplies bytes, int8 is not even decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagoda.formats.base import Format
from pagoda.formats.words import by_token, merged, put_tokens
from pagoda.layouts.base import Axis, Plane

if TYPE_CHECKING:
    import torch

WORD_CODES = 4
SCALE_NBYTES = 2
# As fp32: the smallest normal number, and the one NaN that is written.
SMALLEST_SCALE_BITS = 0x00800000
NAN_BITS = 0x7FC00000
# A scale rounded up to bf16, and what the rounding of quotients adds to that.
SCALE_EXCESS = 2.0**-7 + 2.0**-14


@dataclass(frozen=True)
class ScaledFormat(Format):
    """Codes of `dtype_name` up to `largest`; `relative_error` and `absolute_error` are those of a code."""

    short_name: str
    dtype_name: str
    largest: float
    relative_error: float
    absolute_error: float

    @property
    def name(self) -> str:
        return self.short_name

    def width_multiple(self, axis: Axis) -> int:
        return WORD_CODES if axis is Axis.CHANNEL else 1

    def plane_nbytes(self, plane: Plane, page_tokens: int) -> int:
        return plane.num_heads * page_tokens * (plane.width + SCALE_NBYTES)

    def error_bound(self, values: torch.Tensor, plane: Plane) -> torch.Tensor:  # noqa: ARG002
        scales = values.abs().amax(dim=-1, keepdim=True) / self.largest
        return (values.abs() * self.relative_error).maximum(scales * self.absolute_error) * (1 + SCALE_EXCESS)

    def write(
        self, data: torch.Tensor, plane: Plane, pages: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor
    ) -> None:
        codes, scales = self._views(data, plane)
        scale = scales_of(values.float().abs().amax(dim=-1), self.largest)
        put_tokens(codes, pages, offsets, self._codes(values.float() / scale.float().unsqueeze(-1)))
        scales[pages, :, offsets] = scale

    def decode(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        codes, scales = self._views(data, plane)
        return merged(codes) * scales.float().unsqueeze(-1)

    def token_views(self, data: torch.Tensor, plane: Plane) -> tuple[torch.Tensor, ...]:
        import torch

        codes, scales = self._views(data, plane)
        return codes.view(torch.uint8), scales[..., None, None, None]

    def _views(self, data: torch.Tensor, plane: Plane) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes as `by_token` gives them, and scales [..., heads, page_tokens]."""
        import torch

        heads = data.unflatten(-1, (plane.num_heads, -1))
        num_codes = heads.shape[-1] // (plane.width + SCALE_NBYTES) * plane.width
        codes = heads[..., :num_codes].view(getattr(torch, self.dtype_name))
        return by_token(codes, plane, WORD_CODES), heads[..., num_codes:].view(torch.bfloat16)

    def _codes(self, quotients: torch.Tensor) -> torch.Tensor:
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype_name)
        bounded = quotients.nan_to_num(nan=0.0).clamp(-self.largest, self.largest)
        return (bounded if dtype.is_floating_point else bounded.round()).to(dtype)


def scales_of(spans: torch.Tensor, largest: float) -> torch.Tensor:
    """`spans` over the number they are scaled to, rounded up to bf16: NaN where not finite, never zero."""
    import torch

    bits = (spans / largest).view(torch.int32) + 0xFFFF
    bits = bits.clamp(min=SMALLEST_SCALE_BITS).where(spans.isfinite(), NAN_BITS)
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)


INT8 = ScaledFormat("int8", "int8", largest=127, relative_error=0, absolute_error=0.5)
FP8_E4M3 = ScaledFormat("fp8_e4m3", "float8_e4m3fn", largest=448, relative_error=2.0**-4, absolute_error=2.0**-10)
FP8_E5M2 = ScaledFormat("fp8_e5m2", "float8_e5m2", largest=57344, relative_error=2.0**-3, absolute_error=2.0**-17)
