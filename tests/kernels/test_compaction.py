"""What compression does with pages: moving tokens, against writing them anew, and seeing what attends to them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.cases import NAN_BYTE, Shape, build, make_view
from pagoda.errors import ConfigError
from pagoda.formats.plain import FP32
from pagoda.formats.scaled import INT8
from pagoda.kernels.base import AttentionRule
from pagoda.kernels.compaction import LastQueries, StoredLayer, StoredTokens
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import instruction_sets
from pagoda.kernels.reference import ReferenceKernels
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.latent import LatentLayout
from pagoda.layouts.spec import Reach
from pagoda.registry import lookup, names

NUM_SLOTS = 75
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


REFERENCE = "reference"
every_backend = pytest.mark.parametrize("backend", [REFERENCE, *instruction_sets()])


def kernels_of(backend):
    return ReferenceKernels() if backend == REFERENCE else NativeKernels(backend)


every_isa = pytest.mark.parametrize("isa", instruction_sets())
every_page = pytest.mark.parametrize(("format", "layout"), PAGES.values(), ids=PAGES)


@every_backend
@every_page
@pytest.mark.parametrize(("page_tokens", "num_slots"), [(16, NUM_SLOTS), (32, 700)])
def test_moved_tokens_have_the_bytes_of_tokens_written_there(backend, format, layout, page_tokens, num_slots):
    """Of every head other ones, from shuffled pages; nothing else changes in the pages that they move to."""
    shape = Shape.of(layout, format=format, sequences=((0, num_slots),), page_tokens=page_tokens)
    case, num_kept = build(shape), num_slots // 2
    order = torch.rand(shape.kv_heads, num_slots, generator=torch.Generator().manual_seed(1)).argsort(dim=-1)
    kept = order[:, :num_kept].sort(dim=-1).values
    num_pages = -(-num_kept // page_tokens)
    target = torch.full((num_pages, case.layer.geometry.page_nbytes), NAN_BYTE, dtype=torch.uint8)
    kernels_of(backend).move_tokens(case.layer, case.whole.page_indices.long(), kept, target)

    anew = replace(case.layer, pages=torch.full_like(target, NAN_BYTE))
    heads = torch.arange(shape.kv_heads)
    key, value = (rows if rows is None else rows[kept.T, heads] for rows in (case.key, case.value))
    view = make_view(replace(shape, sequences=((0, num_kept),)), torch.arange(num_pages).int(), [num_kept])
    ReferenceKernels().store(key, value, anew, view)
    assert torch.equal(target, anew.pages)


@pytest.mark.parametrize(
    ("page", "slot", "message"), [(99, 0, "a page"), (-1, 0, "a page"), (0, 96, "none of"), (0, -1, "none of")]
)
def test_native_kernels_move_nothing_from_outside_of_pages(page, slot, message):
    case = stored_case()
    pages, kept = case.whole.page_indices.long(), torch.full((4, 1), slot)
    pages[1] = page
    target = torch.full((1, case.layer.geometry.page_nbytes), NAN_BYTE, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        NativeKernels().move_tokens(case.layer, pages, kept, target)
    assert (target == NAN_BYTE).all()
    with pytest.raises(ConfigError, match="no room"):
        NativeKernels().move_tokens(case.layer, pages, torch.zeros(4, 33, dtype=torch.int64), target)


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


def stored_layer(case, calls, kernels):
    return StoredLayer(StoredTokens(kernels, case.layer, case.whole.page_indices.long(), NUM_SLOTS), calls)


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


@every_backend
@every_rule
def test_logits_and_weights_are_those_of_attention(backend, rule, has_sinks):
    case = stored_case()
    call = last_queries(case, rule, has_sinks)
    logits, weights = attended(case, call)
    layer = stored_layer(case, [call], kernels_of(backend))
    check(layer.logits, logits)
    check(layer.weights, weights)
    check(layer.mass, weights.sum(dim=2))
    check(layer.peak, weights.amax(dim=2))
    check_groups(layer, logits)


@every_backend
def test_calls_that_read_one_layer_are_further_query_heads_of_its_kv_heads(backend):
    first, second = stored_case(), stored_case(group=2)
    for other in ("plain", "capped with sinks"):
        calls = [last_queries(first, *RULES["plain"]), last_queries(second, *RULES[other])]
        expected = [attended(first, calls[0]), attended(replace(second, key=first.key), calls[1])]
        logits, weights = (torch.cat(each, dim=1) for each in zip(*expected, strict=True))
        layer = stored_layer(first, calls, kernels_of(backend))
        check(layer.logits, logits)
        check(layer.weights, weights)
        check(layer.mass, weights.sum(dim=2))
        check(layer.peak, weights.amax(dim=2))
        check_groups(layer, logits)


def check_groups(layer, logits):
    check(layer.group_logits, logits.sum(dim=1))
    for count in (1, 33, NUM_SLOTS - 5):
        check(layer.group_mass(count), logits.sum(dim=1)[..., :count].softmax(dim=-1).sum(dim=1))


SCORED = {
    "as it is": (AttentionRule(scale=0.1), False),
    "capped": (AttentionRule(scale=0.1, soft_cap=0.5), True),
    "of other tokens": (AttentionRule(scale=0.2, reach=Reach.ENCODER), True),
}
SEQUENCES = {
    (0, 1): torch.float32,
    (2099, 1): torch.bfloat16,  # several splits
    (260, 33): torch.bfloat16,  # several blocks
    (0, 70): torch.float32,  # several tiles
}


@every_isa
@every_page
def test_native_kernels_score_keys_of_every_format_as_the_reference_does(isa, format, layout):
    for sequence, dtype in SEQUENCES.items():
        case = build(Shape.of(layout, format=format, sequences=(sequence,), group=3, dtype=dtype))
        check_scored(NativeKernels(isa), case)


@every_isa
def test_native_kernels_score_keys_that_are_kept_without_their_scales(isa):
    case = build(Shape(format=INT8, sequences=((70, 9),), has_constants=True))
    none = replace(case.layer.constants, pairs=torch.empty(2, 0, 3).int(), bases=torch.empty(2, 0, 2))
    check_scored(NativeKernels(isa), replace(case, layer=replace(case.layer, constants=none)))


def check_scored(kernels, case):
    """Both multiply what is kept in fp32, in another order: sums of up to 192 products, each of at most 25 x scale."""
    sinks = torch.linspace(-1, 2, case.shape.heads)
    for rule, has_sinks in SCORED.values():
        asked = case.query, case.layer, case.view, rule
        torch.testing.assert_close(kernels.logits(*asked), ReferenceKernels().logits(*asked), rtol=1e-4, atol=1e-4)
        for is_peak in (False, True):
            weights, expected = (
                each.attention_mass(*asked, sinks if has_sinks else None, is_peak=is_peak)
                for each in (kernels, ReferenceKernels())
            )
            torch.testing.assert_close(weights, expected, rtol=3e-4, atol=1e-6)


@every_backend
def test_keys_whose_positions_matter_are_not_scored(backend):
    case, kernels = stored_case(), kernels_of(backend)
    for rule in (AttentionRule(0.1, Reach.SLIDING, span=9), AttentionRule(0.1, slopes=(0.5,) * case.shape.heads)):
        with pytest.raises(ConfigError, match="cannot be scored"):
            kernels.logits(case.query, case.layer, case.view, rule)
        with pytest.raises(ConfigError, match="cannot be scored"):
            kernels.attention_mass(case.query, case.layer, case.view, rule)
        with pytest.raises(ConfigError, match="cannot be scored"):
            kernels.attention_mass(case.query, case.layer, case.view, rule, is_peak=True)
    two = build(Shape(format=FP32, sequences=((3, 1), (4, 1))))
    with pytest.raises(ConfigError, match="one sequence"):
        kernels.logits(two.query, two.layer, two.view, RULES["plain"][0])


@every_isa
def test_mass_has_the_same_bits_on_any_number_of_threads(isa):
    case, kernels = build(Shape(format=INT8, sequences=((1800, 300),))), NativeKernels(isa)
    asked = case.query, case.layer, case.view, RULES["plain"][0]
    expected, num_threads = kernels.attention_mass(*asked), torch.get_num_threads()
    torch.set_num_threads(3 if num_threads == 1 else 1)
    try:
        assert torch.equal(kernels.attention_mass(*asked), expected)
    finally:
        torch.set_num_threads(num_threads)


@every_isa
def test_the_peak_has_the_same_bits_however_rows_are_divided(isa):
    """They are computed in steps of any size, and keys that only some rows see end anywhere."""
    case, kernels = build(Shape(format=INT8, sequences=((300, 90),), group=3)), NativeKernels(isa)
    pages, rule = case.whole.page_indices.long(), RULES["capped with sinks"][0]

    def peak(first, stop):
        tokens = StoredTokens(kernels, case.layer, pages[: -(-(300 + stop) // case.shape.page_tokens)], 300 + stop)
        peaks = StoredLayer(tokens, [LastQueries(rule, case.query[first:stop])]).peak
        return torch.nn.functional.pad(peaks, (0, 90 - stop))

    parts = [peak(first, stop) for first, stop in ((0, 1), (1, 34), (34, 89), (89, 90))]
    assert torch.equal(torch.stack(parts).amax(dim=0), peak(0, 90))


@pytest.mark.parametrize("layout", [AttentionLayout(2, 64, 32), LatentLayout(64, 16)], ids=["attention", "latent"])
def test_keys_and_values_are_those_of_the_sequence_in_order(layout):
    case = build(Shape.of(layout, format=FP32, sequences=((0, NUM_SLOTS),)))
    layer = stored_layer(case, (), ReferenceKernels())
    values = case.key[..., : case.shape.value_width] if case.value is None else case.value
    assert torch.equal(layer.keys, case.key.transpose(0, 1))
    assert torch.equal(layer.values, values.transpose(0, 1))
    assert (layer.number, layer.num_heads, layer.num_slots) == (1, case.shape.kv_heads, NUM_SLOTS)
