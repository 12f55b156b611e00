"""The linear layer that takes what an attention call gives, of whatever name: found by following it through a network.

Knows a network that is being probed. A call whose result is gated, normed or mixed with others first has none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pagoda.models.coded import Coded


class _Call(Protocol):
    @property
    def output(self) -> torch.Tensor:
        """[1, rows, heads, width]"""


@contextmanager
def watch_projections(network: nn.Module, calls: Sequence[_Call]) -> Iterator[dict[int, set[str]]]:
    """While `network` runs, the names of the linear layers that take what the latest of `calls` gave, by its number."""
    takers = defaultdict[int, set[str]](set)

    def note(name: str, inputs: tuple[Any, ...]) -> None:
        if calls and inputs and _are_heads_in_a_row(inputs[0], calls[-1].output):
            takers[len(calls) - 1].add(name)

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    try:
        yield takers
    finally:
        for hook in hooks:
            hook.remove()


def projection_of(module: Any) -> torch.Tensor:
    """What a linear layer multiplies rows by: [inputs, outputs]."""
    weight: torch.Tensor = module.dense() if isinstance(module, Coded) else module.weight
    return weight if isinstance(module, Conv1D) else weight.T


def _are_heads_in_a_row(rows: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether `rows` are those of `output`, untouched. Tensors without values can be told by their memory alone."""
    is_same = rows.untyped_storage()._cdata == output.untyped_storage()._cdata and rows.numel() == output.numel()
    return is_same and rows.is_contiguous() and rows.shape[-1] == output.shape[2] * output.shape[3]
