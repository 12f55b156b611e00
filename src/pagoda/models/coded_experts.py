"""Experts whose weights are codes: modules of transformers' interface for experts, which take their matrices coded.

A step reads the matrices that its tokens are routed to, and no others; outside a step those are decoded, one by one.
Knows one such module. Does not know networks (`models/coded.py`), nor where codes come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pagoda.kernels.coded_stack import CodedStack
from pagoda.kernels.reference_layers import by_expert
from pagoda.models.attention import kernels_in_flight

# What the decorator of the interface says of a module, and the matrices that it may have.
FLAGS = ("has_gate", "has_bias", "is_transposed")
MATRICES = ("gate_up_proj", "up_proj", "down_proj")

# What stands for a parameter: codes, of columns that follow one another where those are coded in different ways.
Stacks = tuple[CodedStack, ...]


class CodedExperts(nn.Module):
    """Mixed in before a class of experts. `coded` has matrices by name; others are dense."""

    coded: dict[str, Stacks]
    dense_dtype: torch.dtype
    # Whether the gate is SiLU's, for which there is a kernel; `models/fused.py` finds out.
    has_plain_gate = False

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The sum of what the experts in `top_k_index` [rows, n] make of `hidden_states` [rows, width], weighed.

        Those of a row are added in their order, whatever is computed beside it.
        """
        own: Any = self
        inner = self._multiply("gate_up_proj" if own.has_gate else "up_proj", hidden_states, top_k_index).flatten(0, 1)
        inner = self._gated(inner) if own.has_gate else own.act_fn(inner)
        outer = self._multiply("down_proj", inner, top_k_index.reshape(-1, 1))[:, 0]
        weighed = outer.unflatten(0, top_k_index.shape) * top_k_weights.reshape(*top_k_index.shape, 1)
        total: torch.Tensor = weighed.sum(dim=1).to(hidden_states.dtype)
        return total

    def dense(self, name: str) -> torch.Tensor:
        """All weights of the parameter `name`, decoded anew."""
        weight = torch.cat([each.decode(self.dense_dtype) for each in self.coded[name]], dim=1)
        return weight.mT.contiguous() if vars(self)["is_transposed"] else weight

    def _gated(self, inner: torch.Tensor) -> torch.Tensor:
        kernels = kernels_in_flight()
        if kernels is not None and self.has_plain_gate:
            return kernels.gated_silu(*inner.chunk(2, dim=-1))
        own: Any = self
        gated: torch.Tensor = own._apply_gate(inner)
        return gated

    def _multiply(self, name: str, input: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """[rows, n, columns] of `input` [rows, depth] and `experts` [rows, n]."""
        bias: torch.Tensor | None = getattr(self, f"{name}_bias", None)
        stacks = self.coded.get(name, ())
        if not stacks:
            dense = dense_matrices(self)[name]
            return _dense_product(input, experts, dense.shape[1], dense.__getitem__, bias)
        biases = (None,) * len(stacks) if bias is None else bias.split([each.rows for each in stacks], dim=1)
        outs = [self._coded_product(input, experts, *each) for each in zip(stacks, biases, strict=True)]
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)

    def _coded_product(
        self, input: torch.Tensor, experts: torch.Tensor, weight: CodedStack, bias: torch.Tensor | None
    ) -> torch.Tensor:
        kernels = kernels_in_flight()
        if kernels is not None:
            return kernels.coded_experts(input, weight, experts, None if bias is None else bias.contiguous())

        def matrix(expert: int) -> torch.Tensor:
            return weight.matrix(expert).decode(self.dense_dtype)

        return _dense_product(input, experts, weight.rows, matrix, bias)


def are_codable(module: nn.Module) -> bool:
    """Whether a module is of the interface, and not coded. Those that normalise what experts make stay dense."""
    own = vars(module)
    return (
        not own.keys().isdisjoint(FLAGS)
        and not own.get("has_post_expert_norm")
        and not isinstance(module, CodedExperts)
    )


def dense_matrices(module: nn.Module) -> dict[str, torch.Tensor]:
    """Those of a module of the interface by name, each [experts, columns, depth]."""
    held = {name: module._parameters.get(name) for name in MATRICES}
    is_transposed = vars(module)["is_transposed"]
    return {name: each.mT if is_transposed else each for name, each in held.items() if each is not None}


def take_codes(module: Any, weights: Mapping[str, Stacks]) -> None:
    """Let a module of the interface compute with `weights`, by the names of dense ones, whose type results have."""
    matrices = dense_matrices(module)
    module.coded, module.dense_dtype = dict(weights), next(iter(matrices.values())).dtype
    module.__class__ = type(type(module).__name__, (CodedExperts, type(module)), {})
    for name, stacks in weights.items():
        count, _, depth = matrices[name].shape
        assert all((each.count, each.depth) == (count, depth) for each in stacks)
        assert sum(each.rows for each in stacks) == matrices[name].shape[1]
        del module._parameters[name]
        for part, each in enumerate(stacks):
            module.register_parameter(_parameter_name(name, part, each), each.data)


def give_dense(module: Any) -> None:
    """Give coded experts dense weights of what their codes stand for."""
    for name, stacks in module.coded.items():
        for part, each in enumerate(stacks):
            del module._parameters[_parameter_name(name, part, each)]
        module.register_parameter(name, nn.Parameter(module.dense(name), requires_grad=False))
    module.__class__ = next(kind for kind in type(module).__mro__[1:] if not issubclass(kind, CodedExperts))
    del module.coded, module.dense_dtype


def _parameter_name(name: str, part: int, weight: CodedStack) -> str:
    """Another for each coding, so that the same bytes of two are not taken for the same weights."""
    return f"{name}_{part}_{weight.kind.replace(' ', '_')}"


def _dense_product(
    input: torch.Tensor,
    experts: torch.Tensor,
    columns: int,
    matrix: Callable[[int], torch.Tensor],
    bias: torch.Tensor | None,
) -> torch.Tensor:
    def multiply(rows: torch.Tensor, expert: int) -> torch.Tensor:
        return functional.linear(rows, matrix(expert), None if bias is None else bias[expert])

    return by_expert(input, experts, columns, multiply)
