"""A toy of each kind of thing that can be registered: what its recipe in CONTRIBUTING.md asks for, and no more.

Tests register them by name; `test_recipes.py` runs the suites that they inherit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pagoda.cache.eviction.base import EvictionPolicy, Usage
from pagoda.cache.tiers.host import HostTier
from pagoda.errors import KernelUnavailableError
from pagoda.formats.base import Format
from pagoda.formats.words import by_token, merged, put_tokens
from pagoda.kernels.base import AttentionRule, AttentionUse, GroupView, Kernels, LayerPages
from pagoda.kernels.reference import ReferenceKernels
from pagoda.kernels.reference_compaction import PlainCompaction
from pagoda.layouts.base import Axis, Layout, Plane

NUMBER_NBYTES = 8


@dataclass(frozen=True)
class ToyFormat(Format):
    """Every number in 64 bits, which no kernel but the reference has heard of."""

    @property
    def name(self) -> str:
        return "toy"

    @property
    def has_codes(self) -> bool:
        return False

    def model_dtype(self) -> torch.dtype:
        return torch.float32

    def plane_nbytes(self, plane: Plane, page_tokens: int) -> int:
        return plane.elements_per_token * page_tokens * NUMBER_NBYTES

    def error_bound(self, values: torch.Tensor, plane: Plane) -> torch.Tensor:
        return torch.zeros_like(values)

    def write(
        self, data: torch.Tensor, plane: Plane, pages: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor
    ) -> None:
        put_tokens(self._view(data, plane), pages, offsets, values)

    def decode(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        return merged(self._view(data, plane))

    def token_views(self, data: torch.Tensor, plane: Plane) -> tuple[torch.Tensor, ...]:
        return (self._view(data, plane),)

    def _view(self, data: torch.Tensor, plane: Plane) -> torch.Tensor:
        return by_token(data.view(torch.float64).unflatten(-1, (plane.num_heads, -1)), plane, 1)


TOY_FORMAT = ToyFormat()


@dataclass(frozen=True)
class ToyLayout(Layout):
    """Keys and values of three heads that no model has. Every eighth token can be resumed at."""

    width: int

    @property
    def planes(self) -> tuple[Plane, ...]:
        return (Plane("key", 3, self.width, Axis.CHANNEL), Plane("value", 3, 2 * self.width, Axis.TOKEN))

    @classmethod
    def examples(cls) -> Mapping[str, ToyLayout]:
        return {"three heads": cls(24)}

    def resumable_tokens(self, num_matched_tokens: int) -> int:
        return num_matched_tokens // 8 * 8


class ToyPolicy(EvictionPolicy):
    """What was used last goes first."""

    def priority(self, usage: Usage) -> int:
        return -usage.last_used


class ToyTier(HostTier):
    """Memory under another name."""

    @property
    def name(self) -> str:
        return "toy"


class ToyKernels(PlainCompaction, Kernels):
    """Attends, as the reference does, without windows and sinks; brings nothing for layers."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._reference = ReferenceKernels()

    @property
    def name(self) -> str:
        return "toy"

    def obstacle(self, layer: LayerPages, use: AttentionUse) -> str | None:
        if use.rule.span is not None:
            return "windows are beyond a toy"
        return "sinks are beyond a toy" if use.has_sinks else None

    def store(
        self,
        key: torch.Tensor,
        value: torch.Tensor | None,
        layer: LayerPages,
        view: GroupView,
        finite: torch.Tensor | None = None,
    ) -> None:
        self._reference.store(key, value, layer, view, finite)

    def attend(
        self,
        query: torch.Tensor,
        layer: LayerPages,
        view: GroupView,
        rule: AttentionRule,
        sinks: torch.Tensor | None = None,
        biases: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self.num_calls += 1
        return self._reference.attend(query, layer, view, rule, sinks, biases)


class MissingKernels(ToyKernels):
    """Cannot run on this machine."""

    def __init__(self) -> None:
        raise KernelUnavailableError("The toy kernels need a toy box; there is none here.")
