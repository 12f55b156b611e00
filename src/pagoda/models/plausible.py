"""Whether a configuration can be that of the weights beside it, found out before anything is built that is too large.

Knows how much there is of the weights and what kinds of numbers configurations have, by the words in their names. Three
fences, each cheaper to pass than what it keeps out: numbers of the configuration against the weights, calls of torch
while a network is built and tried without weights, and its parameters and tables against the weights. Whether every
tensor fits is found out by who loads them (`weights.py`). What is right passes, however unusual: limits leave room.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pagoda.errors import CorruptCheckpointError
from pagoda.models.build import Build, build_network
from pagoda.models.weights import Outline

# Words in the names of numbers, and how large those may be. The first that is found decides.
KERNELS = re.compile(r"kernel|d_conv|conv_L_cache")
CHUNKS = re.compile(r"^(mamba_)?chunk_size$")  # of a recurrence, which is computed for every pair of tokens in one
SIZES = re.compile(r"size|dim|rank|width|vocab|embd|inner|d_(model|ff|kv)|words|channels|features|labels|bins")
LENGTHS = re.compile(r"position|window|length|seq|ctx|context|distance")
LAYERS = re.compile(r"layers?$|^depths?$|blocks?$|stack")
COUNTS = re.compile(r"heads?$|experts?$|experts_|group|cycles|iter|pretraining_tp|codebooks|ngram|prompt|inputs$")

# Families keep lists of one number for each layer, and of tokens; labels of a classifier mean nothing here.
MAX_ENTRIES = 1 << 16
MAX_LENGTH = 1 << 36
MAX_COUNT = 1 << 12
MAX_KERNEL = 1 << 9
MAX_CHUNK = 1 << 10
# Some share the weights of layers. None is deeper than the second.
SHARED_LAYERS, MAX_LAYERS = 256, 2048
# A dimension of a network may be the product of two numbers, or larger than those of its weights by padding.
SIZE_ROOM, SMALL_SIZE = 8, 1 << 20

# To build every family of transformers without weights, and to run it once, takes up to 44.
CALLS_PER_TENSOR, FEW_CALLS = 200, 30_000
# A network computes what is not stored: tables of positions and masks, some of which count as parameters.
ELEMENT_ROOM, FEW_ELEMENTS = 2, 1 << 26
FEW_BUFFER_NBYTES = 1 << 30


def check_values(values: dict[str, Any], outline: Outline, file: Path) -> None:
    """Refuse the contents of `file`, a config.json, if some number or list in it is too large for the weights."""
    for name, value in _named(values):
        if isinstance(value, (dict, list)) and len(value) > MAX_ENTRIES:
            raise CorruptCheckpointError(f"{file} has {len(value)} entries in {name}, more than any configuration.")
        most = _largest(name, outline)
        if most is not None and isinstance(value, (int, float)) and not value <= most:
            raise CorruptCheckpointError(
                f"{file} has {name} {value!r:.30}, which does not fit its weights: {outline.num_tensors} tensors of "
                f"{outline.num_elements} numbers in all, up to {outline.largest_size} along one dimension."
            )


def _named(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value inside of `values` with the name that it, or the list that it is in, stands under."""
    pending = [(name, values)]
    while pending:
        name, value = pending.pop()
        yield name, value
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += ((name, entry) for entry in value)


def _largest(name: str, outline: Outline) -> int | None:
    """What a number called `name` is at most, None if it may have any size."""
    limits = {
        KERNELS: MAX_KERNEL,
        CHUNKS: MAX_CHUNK,
        SIZES: max(SIZE_ROOM * outline.largest_size, SMALL_SIZE),
        LENGTHS: MAX_LENGTH,
        LAYERS: min(max(SHARED_LAYERS, outline.largest_number + 1), MAX_LAYERS),
        COUNTS: max(MAX_COUNT, outline.num_tensors),
    }
    return next((most for pattern, most in limits.items() if pattern.search(name)), None)


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
