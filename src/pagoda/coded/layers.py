"""Linear layers and embeddings whose weight is coded, put in the place of a network's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pagoda.coded.weight import CodedWeight

GGUF_TYPES = frozenset(
    {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"}
)


class CodedLinear(nn.Module):
    """`nn.Linear` over a coded weight."""

    def __init__(self, coded: CodedWeight, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.coded = coded
        self.bias = bias
        self.weight = torch.empty(0, dtype=dtype)  # whose type families ask for

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.linear(input, self.coded.decode(input.dtype), self.bias)


class CodedEmbedding(nn.Embedding):
    """Mixed in behind the class of an embedding."""

    coded: CodedWeight
    coded_dtype: torch.dtype

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.coded.decode_rows(input, self.coded_dtype)


def install(network: Any, weights: Mapping[str, CodedWeight]) -> None:
    """Give the layers of `network` that these weights are named after, and those tied to them, no other weight."""
    modules = dict(network.named_modules(remove_duplicate=False))
    owned = {
        name: id(module.weight) for name, module in modules.items() if isinstance(module, (nn.Linear, nn.Embedding))
    }
    for name, coded in weights.items():
        weight = owned[name.removesuffix(".weight")]
        for path in [path for path, other in owned.items() if other == weight]:
            _install(network, path, coded)


def _install(network: Any, path: str, coded: CodedWeight) -> None:
    module = network.get_submodule(path)
    if type(module) is nn.Linear:
        network.set_submodule(path, CodedLinear(coded, module.bias, module.weight.dtype))
        return
    dtype, kind = module.weight.dtype, type(module)
    del module._parameters["weight"]
    module.coded, module.coded_dtype = coded, dtype
    module.weight = torch.empty(0, dtype=dtype)  # whose type families ask for
    module.__class__ = CodedEmbedding if kind is nn.Embedding else type(kind.__name__, (kind, CodedEmbedding), {})


def held_weight(module: Any) -> CodedWeight | torch.Tensor:
    """What a linear layer or an embedding has for a weight."""
    coded: CodedWeight | None = vars(module).get("coded")
    return module.weight if coded is None else coded


def coded_weights(network: nn.Module) -> dict[str, CodedWeight]:
    """Those that the layers of `network` have, each once."""
    found: dict[str, CodedWeight] = {}
    for name, module in network.named_modules():
        coded: CodedWeight | None = vars(module).get("coded")
        if coded is not None and all(coded is not other for other in found.values()):
            found[f"{name}.weight"] = coded
    return found
