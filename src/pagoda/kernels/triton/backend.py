"""The backend for GPUs: attention and storing in Triton, layers through torch."""

from __future__ import annotations

import torch

from pagoda.kernels.base import AttentionRule, GroupView, LayerPages
from pagoda.kernels.reference import ReferenceKernels
from pagoda.kernels.triton.attention import TritonAttention


class TritonKernels(ReferenceKernels):
    """Tensors on a GPU; on the CPU where Triton was told to interpret its kernels."""

    def __init__(self) -> None:
        self.attention = TritonAttention()

    @property
    def name(self) -> str:
        return "triton"

    def store(
        self,
        key: torch.Tensor,
        value: torch.Tensor | None,
        layer: LayerPages,
        view: GroupView,
        finite: torch.Tensor | None = None,
    ) -> None:
        self.attention.store(key, value, layer, view, finite)

    def attend(
        self,
        query: torch.Tensor,
        layer: LayerPages,
        view: GroupView,
        rule: AttentionRule,
        sinks: torch.Tensor | None = None,
        biases: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.attention.attend(query, layer, view, rule, sinks, biases)
