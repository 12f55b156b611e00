"""A toy of each kind of thing that can be registered: what its recipe in CONTRIBUTING.md asks for, and no more.

Tests register them by name. A backend whose attention calls are counted shows which kernels served a layer group.
"""

from __future__ import annotations

import torch

from pagoda.errors import KernelUnavailableError
from pagoda.formats.plain import PlainFormat
from pagoda.kernels.base import AttentionRule, AttentionUse, GroupView, Kernels, LayerPages
from pagoda.kernels.reference import ReferenceKernels

# Numbers as they are, under a name that no kernel but the reference has heard of.
TOY_FORMAT = PlainFormat("toy", "float32", itemsize=4, mantissa_bits=23)


class ToyKernels(Kernels):
    """Attends, as the reference does, over full contexts without sinks; brings nothing for layers."""

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
