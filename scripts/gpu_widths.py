"""What steps of real models launch on a card: norms, gates, rotations, products, attention and stores, at their widths.

Knows sizes of models and no weights: tensors on the CPU stand for those of a card, and what is in them is never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kernels.cases import Shape, build
from pagoda.kernels.base import AttentionRule
from pagoda.kernels.triton.attention import TritonAttention
from pagoda.kernels.triton.even import EvenAttention, even
from pagoda.kernels.triton.layers import TritonLayers
from pagoda.kernels.triton.tiles import Tiles
from pagoda.layouts.spec import Reach
from pagoda.registry import lookup

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Rows of a step, and sequences of (tokens before, new tokens): steps of decoding beside a prompt.
NUM_ROWS = 3
SEQUENCES = ((300, 1), (0, 40))


@dataclass(frozen=True)
class Widths:
    """Of a model, in numbers."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    rule: AttentionRule
    has_biases: bool = False


MODELS = {
    "llama_3.1_8b": Widths(4096, 14336, 32, 8, 128, AttentionRule(128**-0.5)),
    "gemma_2_9b": Widths(3584, 14336, 16, 8, 256, AttentionRule(1 / 16, Reach.SLIDING, span=4096, soft_cap=50.0)),
    "qwen_2.5_0.5b": Widths(896, 4864, 14, 2, 64, AttentionRule(1 / 8), has_biases=True),
}


def names() -> list[str]:
    """What there is to compile, as `what/model/more`."""
    found = [f"{what}/{model}/{dtype}" for what in ("layers", "products") for model in MODELS for dtype in DTYPES]
    found += [f"pages/{model}/{format}" for model in MODELS for format in ("bf16", "int8", "int4")]
    return found + [f"even/{model}/{format}" for model in MODELS for format in ("bf16", "int8", "fp32")]


def launch(what: str, model: str, more: str, table: Tiles, has_ptx: bool) -> None:
    widths = MODELS[model]
    if what == "layers":
        launch_layers(widths, DTYPES[more])
    elif what == "products":
        launch_products(widths, DTYPES[more])
    elif what == "pages":
        launch_attention(widths, lookup("format", more), TritonAttention(table, has_ptx))
    else:
        launch_attention(widths, lookup("format", more), EvenAttention(even(table), has_ptx))


def launch_layers(widths: Widths, dtype: torch.dtype) -> None:
    """Of rows one after the other, and of heads that are parts of wider rows."""
    layers, epsilon = TritonLayers(), 1e-6
    hidden, inner = (torch.zeros(NUM_ROWS, width, dtype=dtype) for width in (widths.hidden, widths.inner))
    weight, of_head = (torch.zeros(width, dtype=dtype) for width in (widths.hidden, widths.head))
    layers.rms_norm(hidden, weight, epsilon)
    layers.add_norm(hidden, hidden, weight, epsilon)
    layers.gated_silu(inner, inner)
    layers.gated_silu(*torch.zeros(NUM_ROWS, 2 * widths.inner, dtype=dtype).chunk(2, dim=1))
    projected = torch.zeros(1, NUM_ROWS, widths.heads + 2 * widths.kv_heads, widths.head, dtype=dtype)
    query, key, _ = projected.split((widths.heads, widths.kv_heads, widths.kv_heads), dim=2)
    layers.rms_norm(query, of_head, epsilon)
    turns = torch.zeros(1, NUM_ROWS, widths.head, dtype=dtype)
    layers.rotate_both(query.transpose(1, 2), key.transpose(1, 2), turns, turns)


def launch_products(widths: Widths, dtype: torch.dtype) -> None:
    """All that a layer of a deterministic step multiplies by; logits are what the widest of these are."""
    layers, of_heads = TritonLayers(deterministic=True), widths.heads * widths.head
    projected = of_heads + 2 * widths.kv_heads * widths.head
    pairs = {
        (widths.hidden, projected): widths.has_biases,
        (of_heads, widths.hidden): False,
        (widths.hidden, 2 * widths.inner): False,
        (widths.inner, widths.hidden): False,
    }
    for (depth, columns), has_bias in pairs.items():
        weight = torch.empty(columns, depth, dtype=dtype)
        bias = torch.empty(columns, dtype=dtype) if has_bias else None
        layers.linear(torch.zeros(NUM_ROWS, depth, dtype=dtype), weight, bias)


def launch_attention(widths: Widths, format: Any, kernels: TritonAttention) -> None:
    """Over pages with what keys have in common kept apart, where the format has codes, and stores into them."""
    shape = Shape(
        format=format,
        sequences=SEQUENCES,
        kv_heads=widths.kv_heads,
        group=widths.heads // widths.kv_heads,
        key_width=widths.head,
        value_width=widths.head,
        page_tokens=16,
        dtype=format.model_dtype(),
        has_constants=format.has_codes,
    )
    case = build(shape)
    kernels.attend(case.query, case.layer, case.view, widths.rule)
    kernels.store(case.key, case.value, case.blank(), case.whole, torch.ones(len(SEQUENCES), dtype=torch.uint8))
