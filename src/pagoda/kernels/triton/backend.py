"""The backend for GPUs: attention, storing, norms and gates in Triton, products through torch."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Self

import torch

from pagoda.config import Environment
from pagoda.errors import ConfigError, KernelUnavailableError
from pagoda.kernels.base import AttentionRule, AttentionUse, GroupView, Kernels, LayerPages
from pagoda.kernels.layers import LayerKernels
from pagoda.kernels.recording import StepRecorder
from pagoda.kernels.reference_compaction import PlainCompaction
from pagoda.kernels.triton.own_pages import plane_shapes

INTERPRETER = "TRITON_INTERPRET"


class TritonKernels(PlainCompaction, Kernels):
    """Tensors on a GPU; on the CPU where Triton was told to interpret its kernels.

    If `deterministic`, a row has the same bits in every batch.
    """

    def __init__(self, deterministic: bool = False) -> None:
        if find_spec("triton") is None:
            raise KernelUnavailableError("Triton is not installed; get it with: pip install 'pagoda-kv[gpu]'.")
        if not torch.cuda.is_available() and os.environ.get(INTERPRETER) != "1":
            raise KernelUnavailableError("The Triton kernels need a GPU that torch can use; there is none here.")
        from triton.compiler.compiler import max_shared_mem

        from pagoda.kernels.triton import tiles
        from pagoda.kernels.triton.attention import TritonAttention
        from pagoda.kernels.triton.even import EvenAttention, even
        from pagoda.kernels.triton.graphs import GraphRecorder
        from pagoda.kernels.triton.layers import TritonLayers

        has_card = torch.cuda.is_available()
        table = tiles.for_card(max_shared_mem(torch.cuda.current_device())) if has_card else tiles.HOPPER
        self._is_deterministic = deterministic
        self.attention = EvenAttention(even(table)) if deterministic else TritonAttention(table)
        self._layers = TritonLayers(deterministic)
        self._recorder = GraphRecorder(self.attention) if has_card else None

    @classmethod
    def of(cls, environment: Environment, deterministic: bool) -> Self:  # noqa: ARG003
        return cls(deterministic)

    @property
    def name(self) -> str:
        return f"triton ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "triton (interpreted)"

    @property
    def is_deterministic(self) -> bool:
        return self._is_deterministic

    @property
    def layers(self) -> LayerKernels:
        return self._layers

    @property
    def recorder(self) -> StepRecorder | None:
        return self._recorder

    def obstacle(self, layer: LayerPages, use: AttentionUse) -> str | None:  # noqa: ARG002
        try:
            plane_shapes(layer)
        except ConfigError as error:
            return str(error)
        return None

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
