"""What compression does with pages: moving tokens, against writing them anew, and seeing what attends to them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.cases import NAN_BYTE, Shape, build, make_view
from pagoda.formats.plain import FP32
from pagoda.kernels.base import AttentionRule
from pagoda.kernels.compaction import LastQueries, StoredLayer, move_tokens
from pagoda.kernels.reference import ReferenceKernels
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.latent import LatentLayout
from pagoda.registry import lookup, names

NUM_SLOTS, NUM_KEPT = 75, 37
LAYOUTS = {
    "four KV heads": AttentionLayout(4, 16, 16),
    "two KV heads": AttentionLayout(2, 64, 64),
    "keys wider than values": AttentionLayout(1, 192, 128),
    "latents": LatentLayout(64, 16),
}
FORMATS = [lookup("format", name) for name in names("format")]
PAGES = {
    f"{format.name}, {name}": (format, layout)
    for format in FORMATS
    for name, layout in LAYOUTS.items()
    if not any(map(format.obstacle, layout.planes))
}


@pytest.mark.parametrize(("format", "layout"), PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("page_tokens", [16, 32])
def test_moved_tokens_have_the_bytes_of_tokens_written_there(format, layout, page_tokens):
    """Of every head other ones, from shuffled pages; nothing else changes in the pages that they move to."""
    shape = Shape.of(layout, format=format, sequences=((0, NUM_SLOTS),), page_tokens=page_tokens)
    case = build(shape)
    order = torch.rand(shape.kv_heads, NUM_SLOTS, generator=torch.Generator().manual_seed(1)).argsort(dim=-1)
    kept = order[:, :NUM_KEPT].sort(dim=-1).values
    num_pages = -(-NUM_KEPT // page_tokens)
    target = torch.full((num_pages, case.layer.geometry.page_nbytes), NAN_BYTE, dtype=torch.uint8)
    move_tokens(case.layer, case.whole.page_indices.long(), kept, target)

    anew = replace(case.layer, pages=torch.full_like(target, NAN_BYTE))
    heads = torch.arange(shape.kv_heads)
    key, value = (rows if rows is None else rows[kept.T, heads] for rows in (case.key, case.value))
    view = make_view(replace(shape, sequences=((0, NUM_KEPT),)), torch.arange(num_pages).int(), [NUM_KEPT])
    ReferenceKernels().store(key, value, anew, view)
    assert torch.equal(target, anew.pages)


RULES = {
    "plain": (AttentionRule(scale=0.1), False),
    "capped": (AttentionRule(scale=0.1, soft_cap=0.5), False),
    "with sinks": (AttentionRule(scale=0.1), True),
    "capped with sinks": (AttentionRule(scale=0.3, soft_cap=2.0), True),
}
every_rule = pytest.mark.parametrize(("rule", "has_sinks"), RULES.values(), ids=RULES)


def stored_case(group=3):
    """Four KV heads in shuffled pages, of which the last is not full."""
    return build(Shape(format=FP32, sequences=((NUM_SLOTS - 5, 5),), kv_heads=4, group=group, key_width=16))


def stored_layer(case, calls):
    return StoredLayer(case.layer, case.whole.page_indices.long(), NUM_SLOTS, calls)


def last_queries(case, rule, has_sinks):
    return LastQueries(rule, case.query, torch.linspace(-1, 2, case.shape.heads) if has_sinks else None)


def attended(case, call):
    """Logits and weights, one query head and row at a time: fp64 [KV heads, query heads of each, rows, slots]."""
    rows, heads = call.queries.shape[:2]
    logits = torch.full((heads, rows, NUM_SLOTS), float("-inf"), dtype=torch.double)
    weights = torch.zeros_like(logits)
    for head in range(heads):
        for row in range(rows):
            seen = NUM_SLOTS - rows + row + 1
            keys, query = case.key[:seen, head // case.shape.group].double(), call.queries[row, head].double()
            scores, cap = keys @ query * call.rule.scale, call.rule.soft_cap
            scores = scores if cap is None else (scores / cap).tanh() * cap
            logits[head, row, :seen] = scores
            sink = 0.0 if call.sinks is None else call.sinks[head].double().exp()
            weights[head, row, :seen] = scores.exp() / (scores.exp().sum() + sink)
    return tuple(each.unflatten(0, (case.shape.kv_heads, -1)) for each in (logits, weights))


def check(actual, expected):
    assert actual.dtype is torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


@every_rule
def test_logits_and_weights_are_those_of_attention(rule, has_sinks):
    case = stored_case()
    call = last_queries(case, rule, has_sinks)
    logits, weights = attended(case, call)
    layer = stored_layer(case, [call])
    check(layer.logits, logits)
    check(layer.weights, weights)


def test_calls_that_read_one_layer_are_further_query_heads_of_its_kv_heads():
    first, second = stored_case(), stored_case(group=2)
    calls = [last_queries(first, *RULES["plain"]), last_queries(second, *RULES["capped with sinks"])]
    expected = [attended(first, calls[0]), attended(replace(second, key=first.key), calls[1])]
    layer = stored_layer(first, calls)
    check(layer.logits, torch.cat([logits for logits, _ in expected], dim=1))
    check(layer.weights, torch.cat([weights for _, weights in expected], dim=1))


@pytest.mark.parametrize("layout", [AttentionLayout(2, 64, 32), LatentLayout(64, 16)], ids=["attention", "latent"])
def test_keys_and_values_are_those_of_the_sequence_in_order(layout):
    case = build(Shape.of(layout, format=FP32, sequences=((0, NUM_SLOTS),)))
    layer = stored_layer(case, ())
    values = case.key[..., : case.shape.value_width] if case.value is None else case.value
    assert torch.equal(layer.keys, case.key.transpose(0, 1))
    assert torch.equal(layer.values, values.transpose(0, 1))
    assert (layer.number, layer.num_heads, layer.num_slots) == (1, case.shape.kv_heads, NUM_SLOTS)
