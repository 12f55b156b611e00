"""Dense linear layers that are given the same rows, their weights one tensor: on a GPU they are one product.

A product of few rows reads its weight and takes some microseconds besides, of which a small weight has as many as a
large one. Every layer keeps its weight, which is a part of the tensor: names, ties and bytes are what they were. What
such layers give are parts of wider rows. Knows modules of torch; does not know which layers are given the same rows
(`joint.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pagoda.kernels.layers import LayerKernels
from pagoda.models.joint import Joint, let_join
from pagoda.models.linear import PagedLinear, linear


class StackedLinear(Joint, PagedLinear):
    """Layers whose weights lie one behind the other; each is computed alone once they no longer do."""

    apart = PagedLinear

    def together(self, kernels: LayerKernels, input: torch.Tensor) -> Sequence[torch.Tensor]:  # noqa: ARG002
        weights = [each.weight for each in self.siblings]
        biases = [each.bias for each in self.siblings if each.bias is not None]
        weight, bias = whole(weights), whole(biases) if biases else None
        if weight is None or (bias is None and biases):
            return [self.apart.forward(each, input) for each in self.siblings]
        out = linear(input, weight, bias)
        return torch.split(out, [len(each) for each in weights], dim=-1)


def stack(network: nn.Module, groups: Sequence[Sequence[str]]) -> None:
    """Make the weights of each of `groups`, layers of `network` by name, one tensor, where they can be.

    No more memory than that of one group is taken meanwhile; where there is not even that, layers stay as they are.
    """
    parameters = [each for module in network.modules() for each in module._parameters.values()]
    holders = Counter(map(id, parameters))
    for group in groups:
        layers: list[Any] = [network.get_submodule(name) for name in group]
        if not _can_be_stacked(layers, holders):
            continue
        try:
            _make_whole([each.weight for each in layers])
            _make_whole([each.bias for each in layers if each.bias is not None])
        except torch.OutOfMemoryError:
            return
        let_join(layers, StackedLinear)


def whole(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The tensor that `parts`, each [rows, ...], are of when they lie one behind the other in memory, else None."""
    first = parts[0]
    memory, place = first.untyped_storage().data_ptr(), first.storage_offset()
    for part in parts:
        if part.untyped_storage().data_ptr() != memory or part.storage_offset() != place or not part.is_contiguous():
            return None
        place += part.numel()
    return first.detach().as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())


def _can_be_stacked(layers: Sequence[Any], holders: Mapping[int, int]) -> bool:
    """Whether layers are plain ones of a kind, whose parameters nobody else has."""
    if any(type(each) is not PagedLinear for each in layers):
        return False
    first = layers[0]
    parameters = [each for layer in layers for each in layer._parameters.values() if each is not None]
    return (
        all(holders[id(each)] == 1 and _is_plain(each) for each in parameters)
        and len({(each.dtype, each.device) for each in parameters}) == 1
        and all(each.weight.shape[1] == first.weight.shape[1] for each in layers)
        and len({each.bias is None for each in layers}) == 1
    )


def _is_plain(parameter: torch.Tensor) -> bool:
    """Whether it is numbers and nothing else: some quantised tensors are classes of their own."""
    return type(parameter) is nn.Parameter and type(parameter.data) is torch.Tensor


def _make_whole(parts: Sequence[nn.Parameter]) -> None:
    """Move parameters [rows, ...] to where they lie one behind the other."""
    if not parts or whole(parts) is not None:
        return
    for part, moved in zip(parts, torch.cat([each.data for each in parts]).split([*map(len, parts)]), strict=True):
        part.data = moved
    if moved.is_cuda:
        torch.cuda.empty_cache()  # which would else keep what they left for nobody
