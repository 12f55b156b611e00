"""Layers whose weights are codes: surgery after loading, which takes linear layers and embeddings their dense weights.

Outside a step codes are decoded, which is right for all, but slow. Knows modules of torch. Does not know where codes
come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pagoda.kernels.coded_weight import CodedWeight
from pagoda.models.attention import kernels_in_flight

# Layers whose weights the code of their family reads by itself.
READ_BY_FAMILIES = ("classifier", "dt_proj", "embed_positions", "kv_b_proj", "wo")


class Coded:
    """Mixed in before a layer's class: what stands for its weight has a shape, a type and a device, and no numbers.

    Families ask for these. Whoever reads numbers gets NaN, which shows; they are to be had from `dense`.
    """

    coded: CodedWeight
    dense_dtype: torch.dtype

    @property
    def weight(self) -> torch.Tensor:
        return torch.full((), float("nan"), dtype=self.dense_dtype).expand(self.coded.shape)

    def dense(self) -> torch.Tensor:
        """All weights, decoded anew."""
        return self.coded.decode(self.dense_dtype)


class CodedLinear(Coded, nn.Linear):  # type: ignore[override]
    """`nn.Linear` on codes: in a step its input is coded to 8 bits, unless that is not wanted."""

    codes_input = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        kernels = kernels_in_flight()
        if kernels is None or not self.codes_input:
            return functional.linear(input, self.dense(), self.bias)
        return kernels.coded_linear(input, self.coded, self.bias)


class CodedEmbedding(Coded, nn.Embedding):  # type: ignore[override]
    """`nn.Embedding` on codes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        kernels = kernels_in_flight()
        if kernels is None:
            return self.coded.decode_rows(input, self.dense_dtype)
        return kernels.coded_rows(self.coded, input, self.dense_dtype)


def takes_codes(name: str, module: nn.Module | None) -> bool:
    """Whether a module is a linear layer, or an embedding of any kind that does not renormalise what it reads."""
    is_plain = type(module) is nn.Linear or (isinstance(module, nn.Embedding) and module.max_norm is None)
    return is_plain and name.rpartition(".")[2] not in READ_BY_FAMILIES


def coded_weights(network: nn.Module) -> dict[str, CodedWeight]:
    """Those that the layers of `network` have, by the names of dense ones, each once."""
    found = {name: vars(module).get("coded") for name, module in network.named_modules()}
    once = {id(coded): (f"{name}.weight", coded) for name, coded in reversed(found.items()) if coded is not None}
    return dict(reversed(once.values()))


def held_weight(module: Any) -> CodedWeight | torch.Tensor:
    """What a linear layer or an embedding has for a weight."""
    coded: CodedWeight | None = vars(module).get("coded")
    return module.weight if coded is None else coded


def leave_inputs(network: nn.Module) -> None:
    """Let coded layers of `network` multiply their inputs as they are: weights are decoded anew for each call."""
    for module in network.modules():
        if isinstance(module, CodedLinear):
            module.codes_input = False


def install(network: nn.Module, weights: Mapping[str, CodedWeight]) -> None:
    """Let the layers of `network` compute with `weights`, by the names of their dense ones, whose type results have.

    A head that is tied to an embedding gets its codes too. All names must be weights of modules that take codes.
    """
    tied = {id(parameter): weights[name] for name, parameter in network.named_parameters() if name in weights}
    for module in list(network.modules()):
        dense = module._parameters.get("weight")
        coded = None if dense is None else tied.get(id(dense))
        if coded is not None:
            _set(module, coded)


def _set(module: Any, coded: CodedWeight) -> None:
    dense = module._parameters.pop("weight")
    assert tuple(dense.shape) == coded.shape
    module.__class__ = _coded_kind(type(module))
    module.coded, module.dense_dtype = coded, dense.dtype
    module.register_parameter(coded.kind.replace(" ", "_"), coded.data)


def _coded_kind(kind: type[nn.Module]) -> type[nn.Module]:
    """A family's own embedding keeps what it does besides, such as scaling: it calls the plain one, where ours is."""
    plain = {nn.Linear: CodedLinear, nn.Embedding: CodedEmbedding}
    return plain.get(kind) or type(kind.__name__, (kind, CodedEmbedding), {})
