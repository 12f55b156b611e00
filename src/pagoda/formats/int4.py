"""The codes of four bits a number, in groups of channels that each have a step and a zero: int4_plain.

number = scale * step * (code - zero), codes and zeros 0 to 15, steps 1 to 16: a token and head has one scale, each of
its groups a step and a zero. Without the scale numbers are bytes, so kernels read these pages as those of int8; and as
bytes rows are written first, then the groups of bytes coded with the step that every byte fits in, or one less if the
sum of squared errors is smaller. Groups of keys have at most 16 channels, those of values 32: keys decide which tokens
count.

A head of a plane is its codes, two to a byte, then a bf16 scale per token, then for each group a byte per token: the
step less one in the low bits, the zero in the high ones. A byte of codes holds channels i (low bits) and width / 2 + i
of a token, and groups are cut from each half. Bytes lie as formats/words.py says for a plane of half the width.

KIVI (arXiv 2402.02750) has a range per channel of a page for keys. Here every token has its own, so that a token is
written once, as it comes, and hits may end inside a page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pagoda.formats.base import Format
from pagoda.formats.scaled import SCALE_EXCESS, SCALE_NBYTES, WORD_CODES, scales_of
from pagoda.formats.words import by_token, put_tokens
from pagoda.layouts.base import Axis, Plane

if TYPE_CHECKING:
    import torch

LARGEST_CODE = 15
LARGEST_STEP = 16
# What rows of several groups are scaled to: so far that half a step further is still a byte.
LARGEST_NUMBER = 127 - LARGEST_STEP // 2
KEY_GROUP, VALUE_GROUP = 16, 32
# Two words of keys. Kernels read whole vectors of values too: fewer bytes than this would end behind the page.
WIDTH_MULTIPLE = 2 * WORD_CODES


@dataclass(frozen=True)
class Int4Format(Format):
    """Codes of four bits with steps and zeros."""

    @property
    def name(self) -> str:
        return "int4_plain"

    def group_channels(self, plane: Plane) -> int:
        group = KEY_GROUP if plane.reduced is Axis.CHANNEL else VALUE_GROUP
        return plane.width if plane.width <= group else min(group, plane.width // 2)

    @property
    def query_step(self) -> float:
        return 1 / 255

    def width_multiple(self, axis: Axis) -> int:  # noqa: ARG002
        return WIDTH_MULTIPLE

    def plane_nbytes(self, plane: Plane, page_tokens: int) -> int:
        return plane.num_heads * page_tokens * self._token_nbytes(plane)

    def error_bound(self, values: torch.Tensor, plane: Plane) -> torch.Tensor:
        """Half a step of one group. Of several, half a scale and half a step, and more where one less is taken.

        Then codes lack at most 15 scales, and all errors together are no larger than with the longer step.
        """
        import torch

        groups = self._groups(values.float(), plane)
        if len(groups) == 1:
            return (_span(groups[0]) * ((1 + SCALE_EXCESS) / LARGEST_CODE / 2)).expand_as(values)
        scale = values.float().abs().amax(dim=-1, keepdim=True) * ((1 + SCALE_EXCESS) / LARGEST_NUMBER)
        bounds = []
        for group in groups:
            half_step = (_span(group) + 17 * scale) / LARGEST_CODE / 2
            more = (half_step * (math.sqrt(group.shape[-1]) - 1)).minimum(scale * (LARGEST_CODE / 2))
            bounds.append((scale / 2 + half_step + more).expand_as(group))
        return torch.cat(bounds, dim=-1)

    def write(
        self, data: torch.Tensor, plane: Plane, pages: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor
    ) -> None:
        import torch

        codes, scales, levels = self._views(data, plane)
        values = values.float()
        scale = self._scales(values, plane)
        numbers = (values / scale.float().unsqueeze(-1)).nan_to_num(nan=0.0).round()
        groups = self._groups(numbers, plane)
        coded, told = zip(*(_coded(group, len(groups) > 1) for group in groups), strict=True)
        low, high = torch.cat(coded, dim=-1).chunk(2, dim=-1)
        put_tokens(codes, pages, offsets, low | high << 4)
        scales[pages, :, offsets] = scale
        levels[pages, :, :, offsets] = torch.stack(told, dim=-1)

    def decode(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        import torch

        codes, scales, levels = self._views(data, plane)
        packed = codes.flatten(-2).flatten(-3, -2)
        groups = self._groups(torch.cat((packed & 0xF, packed >> 4), dim=-1).float(), plane)
        steps, zeros = ((levels & 0xF) + 1).float(), (levels >> 4).float()
        numbers = [
            (group - zeros[..., index, :, None]) * steps[..., index, :, None] for index, group in enumerate(groups)
        ]
        return torch.cat(numbers, dim=-1) * scales.float().unsqueeze(-1)

    def token_views(self, data: torch.Tensor, plane: Plane) -> tuple[torch.Tensor, ...]:
        codes, scales, levels = self._views(data, plane)
        return codes, scales[..., None, None, None], levels.transpose(-1, -2)[..., None, :, None]

    def _num_groups(self, plane: Plane) -> int:
        group = self.group_channels(plane)
        return 1 if group == plane.width else 2 * -(-(plane.width // 2) // group)

    def _token_nbytes(self, plane: Plane) -> int:
        return plane.width // 2 + SCALE_NBYTES + self._num_groups(plane)

    def _groups(self, rows: torch.Tensor, plane: Plane) -> list[torch.Tensor]:
        """Rows [..., width] cut into groups, those of the first half first."""
        group = self.group_channels(plane)
        halves = [rows] if group == plane.width else rows.chunk(2, dim=-1)
        return [each for half in halves for each in half.split(group, dim=-1)]

    def _scales(self, values: torch.Tensor, plane: Plane) -> torch.Tensor:
        """bf16 [tokens, heads]. The step of a single group is its scale."""
        if self._num_groups(plane) == 1:
            return scales_of(_span(values).squeeze(-1), LARGEST_CODE)
        return scales_of(values.abs().amax(dim=-1), LARGEST_NUMBER)

    def _views(self, data: torch.Tensor, plane: Plane) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Bytes as `by_token` gives them, scales [..., heads, page_tokens], levels [..., heads, groups, tokens]."""
        import torch

        heads = data.unflatten(-1, (plane.num_heads, -1))
        page_tokens = heads.shape[-1] // self._token_nbytes(plane)
        num_groups = self._num_groups(plane)
        sizes = [page_tokens * each for each in (plane.width // 2, SCALE_NBYTES, num_groups)]
        codes, scales, levels = heads.split(sizes, dim=-1)
        codes = by_token(codes, replace(plane, width=plane.width // 2), WORD_CODES)
        return codes, scales.view(torch.bfloat16), levels.unflatten(-1, (num_groups, page_tokens))


def _span(group: torch.Tensor) -> torch.Tensor:
    """How far the numbers of a group, and zero, lie apart: [..., 1]."""
    return group.amax(dim=-1, keepdim=True).clamp(min=0) - group.amin(dim=-1, keepdim=True).clamp(max=0)


def _coded(numbers: torch.Tensor, has_steps: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [tokens, heads, channels] of small integers, and the byte of step and zero [tokens, heads]."""
    step = (_span(numbers) / LARGEST_CODE).ceil().clamp(1, LARGEST_STEP) if has_steps else numbers[..., :1] * 0 + 1
    codes, zero, error = _with_step(numbers, step)
    if has_steps:
        less = (step - 1).clamp(min=1)
        others = _with_step(numbers, less)
        is_better = others[2] < error
        codes, zero = codes.where(~is_better, others[0]), zero.where(~is_better, others[1])
        step = step.where(~is_better, less)
    return codes.byte(), (step - 1 + zero * 16).byte().squeeze(-1)


def _with_step(numbers: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, zero and the sum of squared errors of a group whose step is given."""
    ends = numbers.amax(dim=-1, keepdim=True).clamp(min=0) + numbers.amin(dim=-1, keepdim=True).clamp(max=0)
    zero = ((LARGEST_CODE - ends / step) / 2).round().clamp(0, LARGEST_CODE)
    codes = ((numbers / step).round() + zero).clamp(0, LARGEST_CODE)
    error = ((codes - zero) * step - numbers).square().sum(dim=-1, keepdim=True)
    return codes, zero, error


INT4_PLAIN = Int4Format()
