"""Linear layers, and routers to experts, that ask the kernels first: decode steps are bound by reading weights.

Surgery after loading: a layer keeps its weights and changes its class. Knows nothing of which rows or types a kernel
takes. Outside a step, and for everything the kernels leave, torch computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pagoda.models.attention import kernels_in_flight
from pagoda.models.rebinding import global_of, rebound

# By what name routers find products.
FUNCTIONAL = "F"


class PagedLinear(nn.Linear):
    """`nn.Linear` on the kernels of the step in flight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


class _Functional:
    """`torch.nn.functional`, with products on the kernels of the step in flight."""

    def linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return linear(input, weight, bias)

    def __getattr__(self, name: str) -> Any:
        return getattr(functional, name)


def use_kernels(network: Any) -> None:
    """Let every plain linear layer of `network` use the kernels, and every module that multiplies by its own weight."""
    for module in network.modules():
        kind = type(module)
        if kind is nn.Linear:
            module.__class__ = PagedLinear
        elif "weight" in module._parameters and global_of(kind, FUNCTIONAL, "linear") is functional:
            module.__class__ = rebound(kind, FUNCTIONAL, _Functional())


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product of a linear layer on the kernels of the step in flight, where they take it."""
    kernels = kernels_in_flight()
    if kernels is not None and kernels.takes_linear(input, weight):
        return kernels.linear(input, weight, bias)
    return functional.linear(input, weight, bias)
