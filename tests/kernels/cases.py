"""Sequences in scattered pages, with NaN wherever nothing was stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from pagoda.formats.base import Format
from pagoda.formats.constants import MOST_PAIRS, KeyConstants, PageTurns
from pagoda.formats.page import PageGeometry
from pagoda.kernels.base import AttentionRule, GroupView, LayerPages
from pagoda.kernels.reference import ReferenceKernels
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.base import Layout
from pagoda.layouts.latent import LatentLayout
from pagoda.layouts.spec import LayerGroup, Reach

NAN_BYTE = 0xFF


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Everything about a case but its numbers. `sequences` has (tokens before, new tokens) of each.

    With `has_latents` the first `value_width` channels of a key are the value. With `has_constants` keys have something
    in common, which is kept apart.
    """

    format: Format
    sequences: tuple[tuple[int, int], ...]
    kv_heads: int = 2
    group: int = 4
    key_width: int = 64
    value_width: int = 64
    page_tokens: int = 32
    dtype: torch.dtype = torch.float32
    has_latents: bool = False
    has_constants: bool = False
    given: Layout | None = None  # if it is none of those that follow from the above

    @classmethod
    def of(cls, layout: Layout, **rest: Any) -> Shape:
        planes = layout.planes
        key, value = planes[0], planes[-1]
        return cls(
            kv_heads=key.num_heads,
            key_width=key.width,
            value_width=value.value_width or value.width,
            has_latents=len(planes) == 1,
            given=layout,
            **rest,
        )

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def layout(self) -> Layout:
        if self.given is not None:
            return self.given
        if self.has_latents:
            return LatentLayout(self.value_width, self.key_width - self.value_width)
        return AttentionLayout(self.kv_heads, self.key_width, self.value_width)


@dataclass(frozen=True)
class Case:
    shape: Shape
    layer: LayerPages
    key: torch.Tensor
    value: torch.Tensor | None
    whole: GroupView  # all tokens are new
    view: GroupView
    query: torch.Tensor

    def blank(self) -> LayerPages:
        return replace(self.layer, pages=torch.full_like(self.layer.pages, NAN_BYTE))


@dataclass(frozen=True)
class Answer:
    """What the reference makes of a case."""

    case: Case
    sinks: torch.Tensor | None
    expected: torch.Tensor


def make_view(shape: Shape, page_indices: torch.Tensor, new_tokens: list[int]) -> GroupView:
    lengths = [past + new for past, new in shape.sequences]
    num_pages = [-(-length // shape.page_tokens) for length in lengths]
    return GroupView(page_indices, starts(num_pages), starts(new_tokens), torch.tensor(lengths, dtype=torch.int32))


def starts(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *counts]).cumsum(0).int()


def build(shape: Shape, seed: int = 0) -> Case:
    """Keys and values stored by the reference in the second layer of three, other pages and layers left NaN."""
    generator = torch.Generator().manual_seed(seed)

    def random(rows: int, heads: int, width: int) -> torch.Tensor:
        return torch.randn(rows, heads, width, generator=generator).to(shape.dtype)

    geometry = PageGeometry(LayerGroup(Reach.FULL, None, (shape.layout,) * 3), shape.format, shape.page_tokens)
    lengths = [past + new for past, new in shape.sequences]
    num_used = sum(-(-length // shape.page_tokens) for length in lengths)
    pages = torch.full((num_used + 3, geometry.page_nbytes), NAN_BYTE, dtype=torch.uint8)
    page_indices = torch.randperm(num_used + 3, generator=generator)[:num_used].int()
    layer = LayerPages(pages, geometry, 1, make_constants(shape, generator) if shape.has_constants else None)
    whole = make_view(shape, page_indices, lengths)
    key = random(sum(lengths), shape.kv_heads, shape.key_width)
    if layer.constants is not None:
        positions = torch.cat([torch.arange(length) for length in lengths])
        key = (key * layer.constants.scales + layer.constants.common(positions // shape.page_tokens)).to(shape.dtype)
    value = None if shape.has_latents else random(sum(lengths), shape.kv_heads, shape.value_width)
    ReferenceKernels().store(key, value, layer, whole)
    new_tokens = [new for _, new in shape.sequences]
    query = random(sum(new_tokens), shape.heads, shape.key_width)
    return Case(shape, layer, key, value, whole, make_view(shape, page_indices, new_tokens), query)


def answered(case: Case, rule: AttentionRule, has_sinks: bool) -> Answer:
    sinks = torch.linspace(-1, 3, case.shape.heads) if has_sinks else None
    return Answer(case, sinks, ReferenceKernels().attend(case.query, case.layer, case.view, rule, sinks))


def make_constants(shape: Shape, generator: torch.Generator) -> KeyConstants:
    """Of other pairs of channels, turns and sizes in every head."""
    heads, width, num_turns = shape.kv_heads, shape.key_width, 5
    num_pairs = min(MOST_PAIRS, width // 2)
    num_pages = max(-(-(past + new) // shape.page_tokens) for past, new in shape.sequences)
    frequencies = torch.rand(num_turns - 1, generator=generator) / 64
    channels = torch.stack([torch.randperm(width, generator=generator)[: 2 * num_pairs] for _ in range(heads)])
    channels = channels.view(heads, num_pairs, 2)
    turns = torch.randint(num_turns, (heads, num_pairs, 1), generator=generator)
    if shape.has_latents:  # channels of values do not turn
        turns[(channels < shape.value_width).any(dim=-1)] = num_turns - 1
    return KeyConstants(
        scales=2.0 ** torch.randint(-2, 2, (heads, width), generator=generator),
        pairs=torch.cat((channels, turns), dim=-1).int(),
        bases=torch.randn(heads, num_pairs, 2, generator=generator) * 2,
        turns=PageTurns.of(frequencies, shape.page_tokens, num_pages),
    )
