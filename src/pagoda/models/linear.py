"""Linear layers that ask the kernels first: decode steps are bound by reading weights.

Surgery after loading: a layer keeps its weights and changes its class. Knows nothing of which rows or types a kernel
takes. Outside a step, and for everything the kernels leave, torch computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pagoda.models.attention import kernels_in_flight


class PagedLinear(nn.Linear):
    """`nn.Linear` on the kernels of the step in flight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        kernels = kernels_in_flight()
        if kernels is not None and kernels.takes_linear(input, self.weight):
            return kernels.linear(input, self.weight, self.bias)
        return functional.linear(input, self.weight, self.bias)


def use_kernels(network: Any) -> None:
    """Let every plain linear layer of `network` use the kernels."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = PagedLinear
