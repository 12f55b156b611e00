"""Layers whose weights are codes: surgery after loading, which takes linear layers and embeddings their dense weights.

Outside a step, and where somebody reads `weight`, the codes are decoded: right for all, but slow. Knows modules of
torch. Does not know where codes come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pagoda.kernels.coded_weight import CodedWeight
from pagoda.models.attention import kernels_in_flight


class CodedLinear(nn.Linear):
    """`nn.Linear` on codes: its input is coded to 8 bits in a step, and left as it is outside."""

    coded: CodedWeight
    dense_dtype: torch.dtype

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return self.coded.decode(self.dense_dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        kernels = kernels_in_flight()
        if kernels is None:
            return functional.linear(input, self.weight, self.bias)
        return kernels.coded_linear(input, self.coded, self.bias)


class CodedEmbedding(nn.Embedding):
    """`nn.Embedding` on codes."""

    coded: CodedWeight
    dense_dtype: torch.dtype

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return self.coded.decode(self.dense_dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        kernels = kernels_in_flight()
        if kernels is None:
            return self.coded.decode_rows(input.contiguous(), self.dense_dtype)
        return kernels.coded_rows(self.coded, input, self.dense_dtype)


def takes_codes(module: nn.Module) -> bool:
    """Whether a module is a linear layer, or an embedding of any kind that does not renormalise what it reads."""
    return type(module) is nn.Linear or (isinstance(module, nn.Embedding) and module.max_norm is None)


def install(network: nn.Module, weights: Mapping[str, CodedWeight], dtype: torch.dtype) -> None:
    """Let the layers of `network` compute with `weights`, by the names of their dense ones, in the type `dtype`.

    A head that is tied to an embedding gets its codes too. All names must be weights of modules that take codes.
    """
    tied = {id(parameter): weights[name] for name, parameter in network.named_parameters() if name in weights}
    for module in list(network.modules()):
        dense = module._parameters.get("weight")
        coded = None if dense is None else tied.get(id(dense))
        if coded is not None:
            _set(module, coded, dtype)


def _set(module: Any, coded: CodedWeight, dtype: torch.dtype) -> None:
    assert takes_codes(module) and tuple(module._parameters["weight"].shape) == coded.shape
    del module._parameters["weight"]
    module.__class__ = _coded_kind(type(module))
    module.coded, module.dense_dtype = coded, dtype
    module.register_parameter(coded.kind.replace(" ", "_"), coded.data)


def _coded_kind(kind: type[nn.Module]) -> type[nn.Module]:
    """A family's own embedding keeps what it does besides, such as scaling: it calls the plain one, where ours is."""
    plain = {nn.Linear: CodedLinear, nn.Embedding: CodedEmbedding}
    return plain.get(kind) or type(kind.__name__, (kind, CodedEmbedding), {})
