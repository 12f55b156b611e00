"""Weights of fp32, fp16 and bf16 checkpoints as codes of 8 or 4 bits, rounded to nearest when they are loaded.

Few rows of a matrix at a time, so that what lies between numbers and codes takes some megabytes of any model. Knows
modules of torch and groups of columns. Does not know how codes are laid out (`kernels/coded_weight.py`).

With `int8` a group of 32 numbers has a scale; with `int4` a scale and a minimum, for which the codes are chosen that
err least of a few (as llama.cpp does for Q4_K). Embeddings and output heads, where errors show most, have 8 bits then,
and so have keys and values, which are few where heads share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from typing import Any

import torch
from torch import nn

from pagoda.kernels.coded_stack import CodedStack
from pagoda.kernels.coded_weight import CodedWeight, GroupedCodes, GroupForm
from pagoda.kernels.native_calls import compiled
from pagoda.kernels.weight_memory import WeightMemory
from pagoda.machine import let_go_of_file
from pagoda.models.coded import codable_experts, codable_layers, install
from pagoda.models.coded_experts import Stacks, dense_matrices

GROUP = 32
FINE_BITS, COARSE_BITS = 8, 4
MOST_INT8 = 127
MOST_INT4 = 15
MIDDLE_INT4 = 8
# Shares of the range between the smallest and the largest number that codes may cover: what lies beyond is cut.
RANGES = (1.0, 0.92, 0.84)
# The layers of keys and of values, and of both.
FINE_LAYERS = ("k_proj", "v_proj", "kv_b_proj")
# Numbers that are rounded at a time: they stay in the caches.
CHUNK = 1 << 18
# Smaller matrices are not worth it.
MIN_ROWS = 64


class Minima(Enum):
    """What a group of codes of 4 bits may subtract: any number, a code of its own (its zero), or the middle one, 8."""

    ANY = auto()
    ZEROS = auto()
    MIDDLE = auto()


def quantize(network: Any, quantization: str) -> None:
    """Let linear layers, embeddings and experts of `network` have codes instead of weights."""
    bits = bits_of_weights(network, quantization)
    memory = WeightMemory()
    weights: dict[str, CodedWeight] = {}
    for name, each in bits.items():
        dense = network.get_parameter(name)
        weights[name] = coded(dense.data, each == FINE_BITS, memory)
        _let_go(dense)
    experts: dict[str, Stacks] = {}
    for name, module in codable_experts(network).items():
        for matrix, dense in dense_matrices(module).items():
            if has_codes(dense):
                experts[f"{name}.{matrix}"] = (_rounded_stack(dense.data, quantization == "int8", memory),)
                _let_go(module.get_parameter(matrix))
    install(network, weights, experts)


def _let_go(dense: nn.Parameter) -> None:
    """Let something that takes no memory stand for a parameter until its codes do."""
    let_go_of_file(dense.data_ptr(), dense.nbytes)
    dense.data = dense.new_zeros(()).expand(dense.shape)


def bits_of_weights(network: Any, quantization: str) -> dict[str, int]:
    """How many bits the weights of `network` get that are to be codes, but for experts, by name.

    What layers share is named once.
    """
    head = network.get_output_embeddings()
    bits: dict[int, tuple[str, int]] = {}
    for name, module in codable_layers(network).items():
        dense: Any = module.weight
        if id(dense) not in bits and len(dense) >= MIN_ROWS:
            is_fine = quantization == "int8" or module is head or isinstance(module, nn.Embedding)
            is_fine |= name.rpartition(".")[2] in FINE_LAYERS
            bits[id(dense)] = f"{name}.weight", FINE_BITS if is_fine else COARSE_BITS
    return dict(bits.values())


def has_codes(matrices: torch.Tensor) -> bool:
    """Whether matrices of experts [experts, rows, depth] are worth it."""
    return matrices.shape[1] >= MIN_ROWS


def _rounded_stack(matrices: torch.Tensor, is_fine: bool, memory: WeightMemory) -> CodedStack:
    """`matrices` [count, rows, depth], which may lie transposed."""
    form, (count, rows, depth) = _form(is_fine), matrices.shape
    stack = CodedStack.unfilled(form.kind, form.coding, rows, depth, memory, count=(count,))
    for number, each in enumerate(matrices):
        stack.matrix(number).fill(form, _rounded_parts(each, is_fine))
        let_go_of_file(each.data_ptr(), each.nbytes)
    return stack


def coded(weight: torch.Tensor, is_fine: bool, memory: WeightMemory | None = None) -> CodedWeight:
    """`weight` [rows, depth] in 8 bits, or in 4 with any minima. What was read of a file is let go, part by part."""
    rows, depth = weight.shape
    return CodedWeight.from_parts(_form(is_fine), (rows, depth), _rounded_parts(weight, is_fine), memory)


def _form(is_fine: bool) -> GroupForm:
    """Of what `rounded` makes: scales and minima are numbers of fp16."""
    return GroupForm(FINE_BITS, GROUP, MOST_INT8 + 1) if is_fine else GroupForm(COARSE_BITS, GROUP, has_minima=True)


def _rounded_parts(weight: torch.Tensor, is_fine: bool) -> Iterator[GroupedCodes]:
    """A few whole blocks of rows at a time."""
    block = compiled().CODED_ROWS
    most_rows = max(1, CHUNK // weight.shape[1] // block) * block
    for part in weight.split(most_rows):
        yield rounded(part, is_fine)
        if part.is_contiguous():
            let_go_of_file(part.data_ptr(), part.nbytes)


def rounded(weight: torch.Tensor, is_fine: bool, kind: Minima = Minima.ANY) -> GroupedCodes:
    """`weight` [rows, depth] in 8 bits, or in 4 with minima of a kind."""
    groups, most_rows = _groups(weight), max(1, CHUNK // weight.shape[1])
    codes = torch.empty(groups.shape, dtype=torch.uint8)
    scales, minima = torch.empty(2, *groups.shape[:2])
    for first in range(0, len(groups), most_rows):
        own = slice(first, first + most_rows)
        codes[own], scales[own], minima[own] = _int8(groups[own]) if is_fine else _int4(groups[own], kind)
    codes = codes.flatten(-2)[:, : weight.shape[1]]
    if is_fine:
        return GroupedCodes(codes, 8, scales, GROUP, MOST_INT8 + 1)
    if kind is Minima.MIDDLE:
        return GroupedCodes(codes, 4, scales, GROUP, MIDDLE_INT4)
    return GroupedCodes(codes, 4, scales, GROUP, 0, minima)


def _groups(weight: torch.Tensor) -> torch.Tensor:
    """[rows, groups, GROUP]: padded by the last number, which widens no range."""
    missing = -weight.shape[1] % GROUP
    padded = torch.cat((weight, weight[:, -1:].expand(-1, missing)), dim=-1) if missing else weight
    groups: torch.Tensor = padded.unflatten(-1, (-1, GROUP))
    return groups


def _int8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = rows.float()
    scales = (rows.abs().amax(dim=-1, keepdim=True) / MOST_INT8).half().float()
    codes = (rows / scales).nan_to_num(0.0, 0.0, 0.0).round().clamp(-MOST_INT8, MOST_INT8) + MOST_INT8 + 1
    return codes.to(torch.uint8), scales[..., 0], scales[..., 0]


def _int4(rows: torch.Tensor, kind: Minima) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each range the codes, then the scale and the minimum that fit these best; kept is what errs least."""
    rows = rows.float()
    low, high = rows.aminmax(dim=-1, keepdim=True)
    if kind is Minima.ZEROS:
        low, high = low.clamp(max=0), high.clamp(min=0)
    elif kind is Minima.MIDDLE:  # code 0 is the number that is farthest from 0
        low = torch.where(high > -low, high, low)
        high = -low * (MOST_INT4 - MIDDLE_INT4) / MIDDLE_INT4
    middle, half = (high + low) / 2, (high - low) / 2
    best: tuple[torch.Tensor, ...] = ()
    for share in RANGES:
        scales, minima = 2 * share * half / MOST_INT4, share * half - middle
        if kind is Minima.ANY:
            codes = _nearest(rows, scales, minima)
            scales, minima = _fitted(rows, codes)
        else:
            zeros = torch.full_like(scales, MIDDLE_INT4)
            if kind is Minima.ZEROS:
                zeros = (minima / scales).nan_to_num(0.0, 0.0, 0.0).round().clamp(0, MOST_INT4)
            codes = _nearest(rows, scales, zeros * scales)
            scales = _fitted_scales(rows, codes - zeros)
            minima = zeros * scales
        codes = _nearest(rows, scales, minima)
        errors = (codes * scales - minima - rows).square().sum(dim=-1, keepdim=True)
        found = (errors, codes, scales, minima)
        pairs = zip(found, best or found, strict=True)
        best = tuple(torch.where(errors < (best or found)[0], *pair) for pair in pairs)
    _, codes, scales, minima = best
    return codes.to(torch.uint8), scales[..., 0], minima[..., 0]


def _nearest(rows: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor) -> torch.Tensor:
    codes: torch.Tensor = ((rows + minima) / scales).nan_to_num(0.0, 0.0, 0.0).round().clamp(0, MOST_INT4)
    return codes


def _fitted(rows: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and minimum of least squares, in fp16; of equal codes the scale is 0."""
    mean_code, mean = codes.mean(dim=-1, keepdim=True), rows.mean(dim=-1, keepdim=True)
    scales = _fitted_scales(rows - mean, codes - mean_code)
    return scales, (scales * mean_code - mean).half().float()


def _fitted_scales(rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    products, squares = ((codes * each).sum(dim=-1, keepdim=True) for each in (rows, codes))
    scales: torch.Tensor = (products / squares).nan_to_num(0.0, 0.0, 0.0).half().float()
    return scales
