"""The C++ kernels for CPUs: allocates results and calls the compiled module.

Knows torch tensors. Does not know how attention is computed: `csrc/` does, once per instruction set. Page tables are
checked there, where they are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch

from pagoda.config import Environment
from pagoda.errors import ConfigError
from pagoda.kernels.base import AttentionRule, AttentionUse, GroupView, Kernels, LayerPages
from pagoda.kernels.native_arguments import checked_sinks
from pagoda.kernels.native_compaction import NativeCompaction
from pagoda.kernels.native_layers import NativeLayers
from pagoda.kernels.native_recording import NativeRecorder

if TYPE_CHECKING:
    from pagoda.kernels import _native


class NativeKernels(NativeLayers, NativeCompaction, Kernels):
    """CPU tensors. `isa` forces an instruction set; None takes the best of this machine.

    With `shares_prefixes`, sequences of a decode step that lie on the same pages read them together; results are the
    same bit for bit (ChunkAttention, arXiv 2402.15220).

    A row has the same bits in every batch of up to MAX_LINEAR_ROWS; with `deterministic`, in any, as far as products go
    through here.
    """

    def __init__(self, isa: str | None = None, shares_prefixes: bool = True, deterministic: bool = False) -> None:
        super().__init__(isa, deterministic)
        self._shares_prefixes = shares_prefixes

    @classmethod
    def of(cls, environment: Environment, deterministic: bool) -> Self:
        return cls(isa=environment.kernel_isa, deterministic=deterministic)

    @property
    def name(self) -> str:
        return f"native ({self.isa}, {torch.get_num_threads()} threads)"

    @property
    def is_deterministic(self) -> bool:
        return self._is_deterministic

    @property
    def layers(self) -> NativeKernels:
        return self

    @property
    def recorder(self) -> NativeRecorder:
        return NativeRecorder(self)

    def obstacle(self, layer: LayerPages, use: AttentionUse) -> str | None:
        return self._told.obstacle(layer, use)

    def tables(self, view: GroupView) -> _native.Tables:
        """The page tables of a step, as the compiled module takes them."""
        return self._told.tables(view)

    def store(
        self,
        key: torch.Tensor,
        value: torch.Tensor | None,
        layer: LayerPages,
        view: GroupView,
        finite: torch.Tensor | None = None,
    ) -> None:
        heads = layer.key.plane.num_heads
        if value is not None and key.shape[0] != value.shape[0]:
            raise ConfigError(f"There are {key.shape[0]} key rows but {value.shape[0]} value rows.")
        key_rows = self._told.rows("key", key, heads, layer.key.plane.width)
        self._run(
            self._kernels.store,
            key_rows,
            key_rows if value is None else self._told.rows("value", value, heads, layer.value.plane.width),
            self._told.pages(layer),
            self._told.tables(view),
            0 if finite is None else finite.data_ptr(),
            key.shape[0],
            torch.get_num_threads(),
        )

    def attend(
        self,
        query: torch.Tensor,
        layer: LayerPages,
        view: GroupView,
        rule: AttentionRule,
        sinks: torch.Tensor | None = None,
        biases: torch.Tensor | None = None,
    ) -> torch.Tensor:
        num_rows, num_heads, _ = query.shape
        key, value_width = layer.key.plane, layer.value_width
        if num_heads % key.num_heads:
            raise ConfigError(f"{num_heads} query heads cannot share {key.num_heads} KV heads evenly.")
        if rule.slopes is not None and len(rule.slopes) != num_heads:
            raise ConfigError(f"There are {len(rule.slopes)} slopes for {num_heads} query heads.")
        if biases is not None and (biases.dim() != 2 or len(biases) != num_heads or rule.slopes is not None):
            raise ConfigError(f"biases is {list(biases.shape)}; it must be [{num_heads}, distances], without slopes.")
        rows = self._told.rows("query", query, num_heads, key.width)
        out = query.new_empty(num_rows, num_heads, value_width)
        out_rows = self._native.Rows(
            out.data_ptr(), num_heads * value_width, value_width, self._told.numbers[query.dtype]
        )
        logits = None if sinks is None else checked_sinks(sinks, num_heads)
        self._run(
            self._kernels.attend,
            rows,
            out_rows,
            self._told.pages(layer),
            self._told.tables(view),
            self._told.rule(rule, biases),
            0 if logits is None else logits.data_ptr(),
            num_rows,
            num_heads,
            self._shares_prefixes,
            torch.get_num_threads(),
        )
        return out
