"""Whether a network can be that of the weights beside its configuration, found out before it is built with weights.

The first of three fences, each cheaper to pass than what it keeps out, is `checkpoint/plausible.py`: numbers of the
configuration against the weights. These are the others: calls of torch while a network is built and tried without
weights, and its parameters and tables against the weights. Whether every tensor fits is found out by who loads them
(`weights.py`). What is right passes, however unusual: limits leave room.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pagoda.checkpoint.weights import Outline
from pagoda.errors import CorruptCheckpointError
from pagoda.models.build import Build, build_network

# To build every family of transformers without weights, and to run it once, takes up to 44.
CALLS_PER_TENSOR, FEW_CALLS = 200, 30_000
# A network computes what is not stored: tables of positions and masks, some of which count as parameters.
ELEMENT_ROOM, FEW_ELEMENTS = 2, 1 << 26
FEW_BUFFER_NBYTES = 1 << 30


def fitting(outline: Outline, file: Path) -> Build:
    """Builds networks of what `file` says; raises CorruptCheckpointError for one that is too large for the weights."""

    def build(config: Any, **options: Any) -> Any:
        network = build_network(config, **options)
        _check_network(network, outline, file)
        return network

    return build


class FewCalls(TorchFunctionMode):
    """Inside of it this thread calls torch as often as networks of such weights need, to be built and run once."""

    def __init__(self, outline: Outline, file: Path) -> None:
        super().__init__()
        self._left = max(CALLS_PER_TENSOR * outline.num_tensors, FEW_CALLS)
        self._complaint = (
            f"{file} describes a network of many more parts than its weights have: {outline.num_tensors} tensors."
        )

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._left -= 1
        if self._left < 0:
            raise CorruptCheckpointError(self._complaint)
        return function(*args, **(kwargs or {}))


def _check_network(network: torch.nn.Module, outline: Outline, file: Path) -> None:
    for name, parameter in network.named_parameters():
        stored = outline.shapes.get(name)
        if stored is not None and prod(stored) != parameter.numel():  # what is transposed or fused later has as many
            raise CorruptCheckpointError(
                f"Weights in {file.parent} have the wrong shape: {name} {list(stored)} instead of "
                f"{list(parameter.shape)}."
            )
    num_elements = sum(parameter.numel() for parameter in network.parameters())
    if num_elements > ELEMENT_ROOM * outline.num_elements + FEW_ELEMENTS:
        raise CorruptCheckpointError(
            f"{file} describes a network of {num_elements} numbers; the weights have {outline.num_elements}."
        )
    nbytes = sum(buffer.nbytes for buffer in network.buffers())
    if nbytes > ELEMENT_ROOM * outline.num_elements + FEW_BUFFER_NBYTES:
        raise CorruptCheckpointError(
            f"{file} describes a network with tables of {nbytes} bytes; weights have {outline.num_elements} numbers."
        )
