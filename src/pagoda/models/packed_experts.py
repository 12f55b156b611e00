"""Matrices of experts in checkpoints that have each expert's layers by themselves: which make up one, and their codes.

Transformers says so, as it merges them: by names with the number of an expert, and operations. Knows layers by name
and shape. Does not know how one is packed (`packed_layers.py`), nor whether it has codes yet.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from pagoda.kernels.coded_stack import CodedStack
from pagoda.kernels.coded_weight import CodedWeight, GroupedCodes
from pagoda.kernels.weight_memory import WeightMemory
from pagoda.models.coded import codable_experts
from pagoda.models.coded_experts import dense_matrices
from pagoda.models.packed_layers import PackedLayer

EXPERT = re.compile(r"experts\.(\d+)\.")

# The layers of each expert whose columns follow one another in a matrix, by name.
Grid = list[list[str]]


def layers_of_experts(network: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Grid]:
    """The layers of a checkpoint, whose weights have `shapes`, that make up each matrix of experts of `network`."""
    found = _places(network, shapes)
    grids: dict[str, Grid] = {}
    for path, module in codable_experts(network).items():
        if vars(module)["is_transposed"]:
            continue
        for name, matrix in dense_matrices(module).items():
            own = found.get(f"{path}.{name}", {})
            count, num_parts = len(matrix), 1 + max((part for _, part in own), default=0)
            if own.keys() == {(expert, part) for expert in range(count) for part in range(num_parts)}:
                grid = [[own[expert, part] for part in range(num_parts)] for expert in range(count)]
                if all(_make_up([shapes[layer] for layer in parts], matrix) for parts in grid):
                    grids[f"{path}.{name}"] = grid
    return grids


def stack_of(grid: Grid, layers: Mapping[str, PackedLayer], memory: WeightMemory) -> CodedStack | None:
    """The codes of a matrix; None unless all layers have such, of one kind."""
    for in_full in (False, True):  # what one can have in fewer bytes another may not
        weights = list(_weights(grid, layers, in_full))
        if len(weights) < len(grid):
            return None
        if all(weight.form == weights[0].form for weight in weights):
            return CodedStack.of(len(weights), weights, memory)
    return None


def _places(network: Any, layers: Iterable[str]) -> dict[str, dict[tuple[int, int], str]]:
    """Those that are parts of a matrix of a network, by its name, and then by number of the expert and of the part."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(network)
    renamings: list[Any] = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters: list[Any] = [each for each in mapping if isinstance(each, WeightConverter) and _merges(each)]
    prefix, state = network.base_model_prefix, network.state_dict()
    found: defaultdict[str, dict[tuple[int, int], str]] = defaultdict(dict)
    for name in layers:
        matrix, pattern = rename_source_key(f"{name}.weight", renamings, converters, prefix, state)
        expert = EXPERT.search(name)
        if pattern is not None and expert is not None:
            patterns = next(each.source_patterns for each in converters if pattern in each.source_patterns)
            found[matrix][int(expert[1]), patterns.index(pattern)] = name
    return found


def _merges(converter: Any) -> bool:
    """Whether all that is done is to put experts, and columns, one behind the other."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    operations = [(type(each), getattr(each, "dim", None)) for each in converter.operations]
    wanted: list[Any] = [(MergeModulelist, 0), (Concatenate, 1)]
    return operations == wanted[: len(converter.source_patterns)]


def _make_up(parts: Sequence[tuple[int, ...]], matrix: torch.Tensor) -> bool:
    _, columns, depth = matrix.shape
    return sum(rows for rows, _ in parts) == columns and all(own_depth == depth for _, own_depth in parts)


def _weights(grid: Grid, layers: Mapping[str, PackedLayer], in_full: bool) -> Iterator[CodedWeight]:
    """Of each expert, up to the first that has none."""
    for parts in grid:
        joined = _joined([layers[each].read() for each in parts])
        if joined is None:
            return
        yield CodedWeight.from_groups(joined, in_full)


def _joined(parts: Sequence[GroupedCodes | torch.Tensor]) -> GroupedCodes | None:
    """Codes of columns that follow one another, if all are codes of a kind."""
    codes = [each for each in parts if isinstance(each, GroupedCodes)]
    kinds = {(each.bits, each.group, each.zero, each.minima is None) for each in codes}
    if len(codes) < len(parts) or len(kinds) > 1:
        return None
    minima = [each.minima for each in codes if each.minima is not None]
    return replace(
        codes[0],
        codes=torch.cat([each.codes for each in codes]),
        scales=torch.cat([each.scales for each in codes]),
        minima=torch.cat(minima) if minima else None,
    )
