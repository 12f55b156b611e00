"""Rows that read the pages alone whose tokens can have the highest scores: which these are, and attention to them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels.cases import Case, Shape, build
from kernels.rounding import tolerance
from kernels.test_compaction import every_isa
from kernels.views import BUDGET, READS_ALL, reading, rows_of
from pagoda.errors import ConfigError
from pagoda.formats.plain import BF16, FP16, FP32
from pagoda.formats.rotated import INT4, INT4_ROTATED
from pagoda.formats.scaled import FP8_E4M3, INT8
from pagoda.kernels.base import AttentionRule, LayerSummaries
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.reference import ReferenceKernels, attend_dense, gather
from pagoda.kernels.reference_reading import chosen_pages, score_bounds
from pagoda.registry import lookup

RULE = AttentionRule(0.1)
# Rows that decode, rows of several, some within the budget, and one that reads all.
SEQUENCES = ((401, 1), (90, 1), (300, 5), (60, 50), (700, 1), (500, 40), (31, 0))
ONE = ((400, 1),)
SHAPES = {
    "fp32": Shape(format=FP32, sequences=SEQUENCES, page_tokens=16),
    "fp16, one head to a group": Shape(
        format=FP16, sequences=SEQUENCES, kv_heads=3, group=1, page_tokens=16, dtype=torch.float16
    ),
    "bf16, seven heads to a group": Shape(format=BF16, sequences=SEQUENCES, group=7, dtype=torch.bfloat16),
    "bf16, forty heads to a group": Shape(
        format=BF16, sequences=SEQUENCES, kv_heads=1, group=40, key_width=40, value_width=24, page_tokens=16
    ),
    "bf16, wide": Shape(format=BF16, sequences=SEQUENCES, group=2, key_width=256, value_width=128, page_tokens=64),
    "int8": Shape(format=INT8, sequences=SEQUENCES, dtype=torch.bfloat16, page_tokens=16),
    "int8, fp32 queries": Shape(format=INT8, sequences=SEQUENCES, page_tokens=48),
    "fp8": Shape(format=FP8_E4M3, sequences=SEQUENCES, key_width=80, dtype=torch.bfloat16),
    "int4": Shape(format=INT4, sequences=SEQUENCES, key_width=128, page_tokens=16),
    "int4, values rotated": Shape(format=INT4_ROTATED, sequences=SEQUENCES, dtype=torch.bfloat16),
    "int8 with constants": Shape(
        format=INT8, sequences=SEQUENCES, dtype=torch.bfloat16, page_tokens=16, has_constants=True
    ),
    "int4 with constants": Shape(format=INT4, sequences=SEQUENCES, group=3, has_constants=True),
    "k8v4": Shape(format=lookup("format", "k8v4"), sequences=SEQUENCES, page_tokens=16),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@every_shape
def test_what_is_left_out_bounds_its_scores_no_higher_than_what_is_read(shape):
    case = reading(shape)
    rounding = tolerance(replace(shape, dtype=torch.float32), RULE)
    for row, _, _, pages in rows_of(case):
        if len(pages) <= BUDGET:
            continue
        chosen = chosen_pages(case.query[row], case.layer, pages, BUDGET)
        between = torch.arange(1, len(pages) - 1)
        bounds = score_bounds(case.query[row], case.layer, pages, between)
        keys = gather(case.layer, case.layer.key, pages[between], between).unflatten(1, (len(between), -1))
        query = case.query[row].float().unflatten(0, (shape.kv_heads, -1))
        scores = torch.einsum("hgd,hptd->hgpt", query, keys).amax(dim=(1, 3))
        assert (scores <= bounds + rounding * bounds.abs().max()).all(), "they are bounds"
        for head in range(shape.kv_heads):
            assert (chosen[head, 0], chosen[head, -1]) == (0, len(pages) - 1)
            assert len(chosen[head].unique()) == BUDGET
            is_read = torch.isin(between, chosen[head])
            assert bounds[head, is_read].min() >= bounds[head, ~is_read].max()


def test_of_equal_bounds_the_earlier_pages_are_read():
    case = reading(Shape(format=FP32, sequences=ONE, page_tokens=16))
    pages = case.view.page_indices.long()
    chosen = chosen_pages(torch.zeros_like(case.query[0]), case.layer, pages, BUDGET)
    assert chosen.tolist() == [[*range(BUDGET - 1), len(pages) - 1]] * 2
    actual = NativeKernels().attend(torch.zeros_like(case.query), case.layer, case.view, RULE)
    expected = ReferenceKernels().attend(torch.zeros_like(case.query), case.layer, case.view, RULE)
    assert (actual - expected).abs().max() < 1e-6


@pytest.mark.parametrize("has_sinks", [False, True])
def test_rows_attend_to_what_they_read_and_to_nothing_else(has_sinks):
    """Against attention that is told of every token whether it is seen."""
    case = reading(Shape(format=FP32, sequences=SEQUENCES, page_tokens=16))
    shape, sinks = case.shape, torch.linspace(-1, 2, case.shape.heads) if has_sinks else None
    actual = ReferenceKernels().attend(case.query, case.layer, case.view, RULE, sinks)
    tokens = case.whole.query_starts.tolist()
    for row, sequence, num_tokens, pages in rows_of(case):
        key, value = (each[tokens[sequence] : tokens[sequence] + num_tokens] for each in (case.key, case.value))
        most = BUDGET if sequence < READS_ALL else len(pages)
        chosen = chosen_pages(case.query[row], case.layer, pages, most)
        for head in range(shape.kv_heads):
            seen = torch.isin(torch.arange(len(pages)), chosen[head]).repeat_interleave(shape.page_tokens)[:num_tokens]
            heads = slice(head * shape.group, (head + 1) * shape.group)
            expected = attend_dense(
                case.query[row : row + 1, heads],
                *(each[seen, head][None] for each in (key, value)),
                AttentionRule(RULE.scale),
                sinks if sinks is None else sinks[heads],
            )
            assert (actual[row, heads] - expected[0]).abs().max() < 1e-6


@contextmanager
def threads(number: int):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@every_isa
@every_shape
@pytest.mark.parametrize("has_sinks", [False, True])
def test_native_kernels_read_what_the_reference_reads(isa, shape, has_sinks):
    case, rule = reading(shape), replace(RULE, soft_cap=5.0 if has_sinks else None)
    sinks = torch.linspace(-1, 2, shape.heads) if has_sinks else None
    expected = ReferenceKernels().attend(case.query, case.layer, case.view, rule, sinks).float()
    first = NativeKernels(isa).attend(case.query, case.layer, case.view, rule, sinks)
    with threads(3):
        again = NativeKernels(isa).attend(case.query, case.layer, case.view, rule, sinks)
    assert torch.equal(first, again), "summaries that are there and new ones are the same, as are threads"
    assert (first.float() - expected).abs().max() <= tolerance(shape, rule) * expected.abs().max()


@every_isa
def test_long_sequences_on_the_same_pages_read_what_each_would_alone(isa):
    """Over several splits, which those that read all have in common, and more pages than a thread bounds at a time."""
    shape = Shape(format=FP32, sequences=((11_500, 1),), kv_heads=1, group=2, key_width=16, page_tokens=16)
    case = reading(shape, budget=90)
    count, table = 4, case.view.page_indices
    view = replace(
        case.view,
        page_indices=table.repeat(count),
        page_starts=torch.arange(count + 1).int() * len(table),
        query_starts=torch.arange(count + 1).int(),
        context_lengths=case.view.context_lengths.repeat(count),
        readings=torch.tensor([[0, 0], [90, 0], [0, 0], [200, 0]]).int(),
    )
    query = torch.randn(count, 2, 16, generator=torch.Generator().manual_seed(3))
    expected = ReferenceKernels().attend(query, case.layer, view, RULE)
    with threads(3):
        together = NativeKernels(isa).attend(query, case.layer, view, RULE)
    assert (together - expected).abs().max() <= tolerance(shape, RULE) * expected.abs().max()
    for row in range(count):
        alone = replace(case.view, readings=view.readings[row : row + 1])
        assert torch.equal(NativeKernels(isa).attend(query[row : row + 1], case.layer, alone, RULE)[0], together[row])


@every_isa
def test_a_row_has_the_same_bits_alone_and_among_others(isa):
    case = reading(SHAPES["bf16, seven heads to a group"])
    together = NativeKernels(isa).attend(case.query, case.layer, case.view, RULE)
    for row, sequence, num_tokens, pages in rows_of(case):
        view = replace(
            case.view,
            page_indices=pages.int(),
            page_starts=torch.tensor([0, len(pages)]).int(),
            query_starts=torch.tensor([0, 1]).int(),
            context_lengths=torch.tensor([num_tokens]).int(),
            readings=case.view.readings[sequence : sequence + 1],
        )
        alone = NativeKernels(isa).attend(case.query[row : row + 1], case.layer, view, RULE)
        assert torch.equal(alone[0], together[row])


@every_isa
@pytest.mark.parametrize(("budget", "first_layer"), [(1000, 0), (BUDGET, 2)], ids=["budget", "layer"])
def test_rows_that_read_all_have_the_bits_of_those_that_were_not_asked(isa, budget, first_layer):
    """Where pages are no more than the budget, or the layer comes before those that choose."""
    case = reading(SHAPES["bf16, seven heads to a group"], budget, first_layer)
    plain = NativeKernels(isa).attend(case.query, case.layer, replace(case.view, readings=None), RULE)
    assert torch.equal(NativeKernels(isa).attend(case.query, case.layer, case.view, RULE), plain)
    assert not case.layer.summaries.is_made.any(), "nothing was looked at"


@every_isa
def test_only_full_pages_between_the_ends_are_summarised_and_once(isa):
    check_summaries_are_made_once(
        NativeKernels(isa), reading(Shape(format=BF16, sequences=((390, 1), (395, 5)), page_tokens=16))
    )


def check_summaries_are_made_once(kernels: Any, case: Case) -> None:
    """Of two sequences, for all pages but the first and the last."""
    kernels.attend(case.query, case.layer, case.view, RULE)
    made, between = case.layer.summaries.is_made, torch.zeros(len(case.layer.pages), dtype=torch.uint8)
    first, last = case.view.page_starts[1:].tolist()
    for table in (case.view.page_indices[:first], case.view.page_indices[first:last]):
        between[table[1:-1].long()] = 1
    assert torch.equal(made, between)
    case.layer.summaries.numbers[made == 0] = float("nan")
    before = case.layer.summaries.numbers.clone()
    case.layer.pages[case.view.page_indices[1].long()] = 0  # what is there is not looked at again
    kernels.attend(case.query, case.layer, case.view, RULE)
    assert torch.equal(case.layer.summaries.numbers.view(torch.int16), before.view(torch.int16))


@every_isa
def test_what_is_stored_into_a_page_is_summarised_anew(isa):
    case, kernels = reading(Shape(format=FP32, sequences=((0, 401),), page_tokens=16)), NativeKernels(isa)
    last = replace(case.view, query_starts=torch.tensor([0, 1]).int())
    kernels.attend(case.query[:1], case.layer, last, RULE)
    kernels.store(case.key.flip(0), case.value.flip(0), case.layer, replace(case.whole, readings=None))
    assert not case.layer.summaries.is_made.any()
    expected = ReferenceKernels().attend(case.query[:1], case.layer, last, RULE)
    assert (kernels.attend(case.query[:1], case.layer, last, RULE) - expected).abs().max() < 1e-5


@every_isa
@every_shape
def test_summaries_reach_as_far_as_the_stored_keys_and_hardly_further(isa, shape):
    case = reading(replace(shape, sequences=ONE), 3)
    NativeKernels(isa).attend(case.query, case.layer, case.view, RULE)
    check_summaries_reach(case)


def check_summaries_reach(case: Case) -> None:
    """Of one sequence, those of all pages but the first and the last."""
    pages, slot, width = case.view.page_indices[1:-1].long(), case.layer.key, case.shape.key_width
    keys = case.shape.format.of(slot.plane).decode_kept(
        case.layer.pages[pages, slot.offset : slot.offset + slot.nbytes], slot.plane
    )
    numbers = case.layer.summaries.numbers[pages].float()
    for reach, kept in (
        (keys.amax(dim=2), numbers[..., :width]),
        (-keys.amin(dim=2), -numbers[..., width : 2 * width]),
    ):
        assert (kept >= reach).all()
        assert (kept <= reach + reach.abs() * 2.0**-7).all()
    assert (numbers[..., 2 * width :] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda case: (replace(case.layer, summaries=None), case.view, RULE), "no summaries"),
        (lambda case: (case.layer, case.view, AttentionRule(0.1, slopes=(0.1,) * 8)), "positions of what is stored"),
        (lambda case: (case.layer, replace(case.view, slots=torch.tensor([400]).int()), RULE), "follow one another"),
        (lambda case: (case.layer, replace(case.view, readings=torch.tensor([[2, 0]]).int()), RULE), "too few pages"),
    ],
)
def test_native_kernels_refuse_what_cannot_be_chosen(change, message):
    layer, view, rule = change(reading(Shape(format=FP32, sequences=ONE, page_tokens=16)))
    case = build(Shape(format=FP32, sequences=ONE, page_tokens=16))
    with pytest.raises(ValueError, match=message):
        NativeKernels().attend(case.query, layer, view, rule)


def test_native_kernels_refuse_pages_that_are_not_there_and_summaries_of_other_shapes():
    case = reading(Shape(format=FP32, sequences=ONE, page_tokens=16))
    gone = replace(case.view, page_indices=case.view.page_indices.clone())
    gone.page_indices[3] = -1
    with pytest.raises(ValueError, match="names a page"):
        NativeKernels().attend(case.query, case.layer, gone, RULE)
    few = LayerSummaries(case.layer.summaries.numbers[:3], case.layer.summaries.is_made)
    with pytest.raises(ConfigError, match="Summaries are"):
        NativeKernels().attend(case.query, replace(case.layer, summaries=few), case.view, RULE)
