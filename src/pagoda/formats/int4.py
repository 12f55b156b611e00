"""The codes of four bits a number, with a scale and a minimum for each token and head: int4_plain.

number = minimum + scale * code, codes 0 to 15. A head of a plane is its codes, two to a byte, then a bf16 scale per
token, then a bf16 minimum per token. A byte holds channels i (low bits) and width / 2 + i of a token. Bytes lie as
formats/words.py says for a plane of half the width, four to a word.

KIVI (arXiv 2402.02750) has a range per channel of a page for keys. Here every token has its own, so that a token is
written once, as it comes, and hits may end inside a page; on the embedded model that costs 0.1 % of perplexity more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pagoda.formats.base import Format
from pagoda.formats.scaled import NAN_BITS, SCALE_EXCESS, SCALE_NBYTES, SMALLEST_SCALE_BITS, WORD_CODES
from pagoda.formats.words import by_token, put_tokens
from pagoda.layouts.base import Axis, Plane

if TYPE_CHECKING:
    import torch

LARGEST_CODE = 15


@dataclass(frozen=True)
class Int4Format(Format):
    """Asymmetric codes of four bits."""

    @property
    def name(self) -> str:
        return "int4_plain"

    def obstacle(self, plane: Plane) -> str | None:
        multiple = 2 * WORD_CODES if plane.reduced is Axis.CHANNEL else 2
        if plane.width % multiple:
            return f"its {plane.name} heads have {plane.width} channels, which must be a multiple of {multiple}"
        return None

    def plane_nbytes(self, plane: Plane, page_tokens: int) -> int:
        return plane.num_heads * page_tokens * (plane.width // 2 + 2 * SCALE_NBYTES)

    def error_bound(self, values: torch.Tensor, plane: Plane) -> torch.Tensor:  # noqa: ARG002
        """Half a step: the range of the row, with the minimum rounded down to bf16, over 15."""
        lowest, highest = values.amin(dim=-1, keepdim=True), values.amax(dim=-1, keepdim=True)
        span = highest - lowest + lowest.abs() * 2.0**-7
        return (span * ((1 + SCALE_EXCESS) / (2 * LARGEST_CODE))).expand_as(values)

    def write(
        self, data: torch.Tensor, plane: Plane, pages: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor
    ) -> None:
        codes, scales, minima = self._views(data, plane)
        scale, minimum = self._levels(values)
        steps = (values.float() - minimum.float().unsqueeze(-1)) / scale.float().unsqueeze(-1)
        numbers = steps.nan_to_num(nan=0.0).clamp(0, LARGEST_CODE).round().byte()
        low, high = numbers.chunk(2, dim=-1)
        put_tokens(codes, pages, offsets, low | high << 4)
        scales[pages, :, offsets], minima[pages, :, offsets] = scale, minimum

    def decode(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        import torch

        codes, scales, minima = self._views(data, plane)
        numbers = codes.flatten(-2).flatten(-3, -2)
        both = torch.cat((numbers & 0xF, numbers >> 4), dim=-1)
        return both.float() * scales.float().unsqueeze(-1) + minima.float().unsqueeze(-1)

    def _views(self, data: torch.Tensor, plane: Plane) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Bytes as `by_token` gives them, scales and minima [..., heads, page_tokens]."""
        import torch

        heads = data.unflatten(-1, (plane.num_heads, -1))
        page_tokens = heads.shape[-1] // (plane.width // 2 + 2 * SCALE_NBYTES)
        codes, levels = heads.split([page_tokens * (plane.width // 2), page_tokens * 2 * SCALE_NBYTES], dim=-1)
        scales, minima = levels.view(torch.bfloat16).chunk(2, dim=-1)
        return by_token(codes, replace(plane, width=plane.width // 2), WORD_CODES), scales, minima

    def _levels(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and minimum as bf16 [tokens, heads]; the scale is NaN for a row that is not finite, never zero."""
        import torch

        values = values.float()
        lowest = values.amin(dim=-1)
        bits = lowest.view(torch.int32)
        minimum = torch.where(lowest < 0, bits + 0xFFFF, bits) >> 16
        span = values.amax(dim=-1) - (minimum << 16).view(torch.float32)
        finite = values.isfinite().all(dim=-1) & span.isfinite()
        scale = ((span / LARGEST_CODE).view(torch.int32) + 0xFFFF).clamp(min=SMALLEST_SCALE_BITS)
        pair = (scale.where(finite, NAN_BITS) >> 16, minimum.where(finite, 0))
        scale, minimum = (each.to(torch.int16).view(torch.bfloat16) for each in pair)
        return scale, minimum


INT4_PLAIN = Int4Format()
