"""Matrices of experts in GGUF files: which tensors have the columns of one, and their blocks as codes.

llama.cpp keeps gates and what they gate in tensors of their own, where transformers has one matrix. Does not know how
files are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from pagoda.checkpoint.gguf_header import CODED_TYPES, GgufTensor
from pagoda.kernels.coded_stack import CodedStack
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.kernels.weight_memory import WeightMemory
from pagoda.models.coded_experts import Stacks, dense_matrices
from pagoda.models.gguf_rules import Rules, place_of_columns


def coded_tensors(
    tensors: Iterable[GgufTensor], rules: Rules, experts: Mapping[str, nn.Module]
) -> dict[str, list[GgufTensor]]:
    """The tensors that make up each matrix of `experts` that can stay coded, by its name, in the order of columns."""
    found: defaultdict[str, dict[int, GgufTensor]] = defaultdict(dict)
    for tensor in tensors:
        place = place_of_columns(rules, tensor.name, tensor.shape[1]) if len(tensor.shape) == 3 else None
        if place is not None:
            found[place.name][place.first] = tensor
    matrices = {f"{path}.{name}": each for path, own in experts.items() for name, each in dense_matrices(own).items()}
    ordered = {name: [parts[first] for first in sorted(parts)] for name, parts in found.items() if name in matrices}
    return {name: parts for name, parts in ordered.items() if _make_up(parts, matrices[name])}


def stacks_of(parts: Sequence[GgufTensor], stored: Callable[[GgufTensor], np.ndarray], memory: WeightMemory) -> Stacks:
    """One of all parts if they have a type in common, else one of each. `stored` gives bytes [experts, columns, n]."""
    if len({tensor.type_name for tensor in parts}) == 1:
        return (_stack(parts, stored, memory),)
    return tuple(_stack([tensor], stored, memory) for tensor in parts)


def _make_up(parts: Sequence[GgufTensor], matrix: torch.Tensor) -> bool:
    """Whether all are of types that are kept, and together as large as `matrix`."""
    count, columns, depth = matrix.shape
    return (
        all(each.type_name in CODED_TYPES and each.shape[::2] == (count, depth) for each in parts)
        and sum(each.shape[1] for each in parts) == columns
    )


def _stack(parts: Sequence[GgufTensor], stored: Callable[[GgufTensor], np.ndarray], memory: WeightMemory) -> CodedStack:
    blocks, first = [stored(tensor) for tensor in parts], parts[0]

    def matrices() -> Iterator[CodedWeight]:
        for own in zip(*blocks, strict=True):
            rows = own[0] if len(own) == 1 else np.concatenate(own)
            yield CodedWeight.from_gguf(first.type_name, (len(rows), first.shape[2]), [torch.from_numpy(rows)])

    return CodedStack.of(first.shape[0], matrices(), memory)
