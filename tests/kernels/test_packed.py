"""Sequences whose first pages are packed: each KV head of a layer has as many cells of them as it was given."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from kernels.cases import Case, Shape, build, starts
from kernels.rounding import tolerance
from kernels.test_compaction import PAGES, every_backend, every_isa, every_page, kernels_of
from kernels.views import Plan, pack
from pagoda.errors import ConfigError
from pagoda.formats.page import PageGeometry
from pagoda.formats.plain import BF16, FP32
from pagoda.formats.scaled import INT8
from pagoda.kernels.base import AttentionRule, GroupView
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.reference import ReferenceKernels, attend_dense
from pagoda.layouts.spec import LayerGroup, Reach

RULES = {
    "plain": (AttentionRule(0.1), False),
    "capped, with sinks": (AttentionRule(0.1, soft_cap=20.0), True),
}


PLANS = (Plan(300, 3, 1, 1), Plan(90, 0, 40, 7), Plan(2600, 40, 50, 33), Plan(200, 2, 20, 0), Plan(1500, 20, 1, 1))


def sinks_of(case: Case, has_sinks: bool) -> torch.Tensor | None:
    return torch.linspace(-1, 2, case.shape.heads) if has_sinks else None


@pytest.mark.parametrize(("rule", "has_sinks"), RULES.values(), ids=RULES)
def test_each_head_attends_to_the_tokens_that_it_kept_and_to_all_behind(rule, has_sinks):
    packed = pack(Shape(format=FP32, sequences=(), kv_heads=3, group=2, page_tokens=16), PLANS[:4])
    case, shape, past, tail, row = packed.case, packed.case.shape, 0, 0, 0
    sinks = sinks_of(case, has_sinks)
    actual = ReferenceKernels().attend(case.query, case.layer, case.view, rule, sinks)
    for plan, kept in zip(PLANS, packed.kept, strict=False):
        for head in range(shape.kv_heads):
            key, value = (
                torch.cat((stored[past + kept[head], head], new[tail : tail + plan.tail, head]))[None]
                for stored, new in ((case.key, packed.key), (case.value, packed.value))
            )
            query_heads, rows = slice(2 * head, 2 * head + 2), slice(row, row + plan.new)
            own_sinks = None if sinks is None else sinks[query_heads]
            expected = attend_dense(case.query[rows, query_heads], key, value, rule, own_sinks)
            torch.testing.assert_close(actual[rows, query_heads], expected)
        past, tail, row = past + plan.past, tail + plan.tail, row + plan.new


@every_isa
@every_page
def test_native_kernels_attend_to_packed_pages_of_every_format_as_the_reference_does(isa, format, layout):
    for page_tokens, dtype in ((16, torch.bfloat16), (32, torch.float32)):
        shape = Shape.of(layout, format=format, sequences=(), group=3, page_tokens=page_tokens, dtype=dtype)
        case, expected = by_the_reference(shape)
        largest = float((case.key if case.value is None else case.value).abs().max())
        for (rule, has_sinks), each in zip(RULES.values(), expected, strict=True):
            actual = NativeKernels(isa).attend(case.query, case.layer, case.view, rule, sinks_of(case, has_sinks))
            limit = 2 * tolerance(shape, rule) * largest
            torch.testing.assert_close(actual.float(), each.float(), rtol=0, atol=limit)


@cache
def by_the_reference(shape: Shape) -> tuple[Case, list[torch.Tensor]]:
    """A packed case, and what each rule gives in it: once for all instruction sets."""
    case = pack(shape, PLANS).case
    asked = ((rule, sinks_of(case, has_sinks)) for rule, has_sinks in RULES.values())
    return case, [ReferenceKernels().attend(case.query, case.layer, case.view, *each) for each in asked]


@every_isa
@every_page
def test_native_kernels_pack_the_bytes_that_the_reference_packs_and_store_behind_them(isa, format, layout):
    shape = Shape.of(layout, format=format, sequences=(), page_tokens=16)
    actual = pack(shape, PLANS, NativeKernels(isa))
    assert torch.equal(actual.case.layer.pages, packed_by_the_reference(shape))


@cache
def packed_by_the_reference(shape: Shape) -> torch.Tensor:
    return pack(shape, PLANS).case.layer.pages


@every_isa
def test_results_have_the_same_bits_in_every_batch_and_on_any_number_of_threads(isa):
    packed, kernels = (
        pack(Shape(format=INT8, sequences=(), dtype=torch.bfloat16, page_tokens=16), PLANS),
        NativeKernels(isa),
    )
    case, rule = packed.case, AttentionRule(0.1)
    together, num_threads = kernels.attend(case.query, case.layer, case.view, rule), torch.get_num_threads()
    torch.set_num_threads(3 if num_threads == 1 else 1)
    try:
        assert torch.equal(kernels.attend(case.query, case.layer, case.view, rule), together)
    finally:
        torch.set_num_threads(num_threads)
    for number in range(len(PLANS)):
        rows = slice(*case.view.query_starts[number : number + 2].tolist())
        alone = kernels.attend(case.query[rows], case.layer, only(case.view, number), rule)
        assert torch.equal(alone, together[rows])


def only(view: GroupView, number: int) -> GroupView:
    first, last = view.page_starts[number : number + 2].tolist()
    rows = view.query_starts[number : number + 2]
    return replace(
        view,
        page_indices=view.page_indices[first:last],
        page_starts=torch.tensor([0, last - first]).int(),
        query_starts=rows - rows[0],
        context_lengths=view.context_lengths[number : number + 1],
        cell_starts=view.cell_starts[number : number + 1],
    )


@every_isa
def test_forks_of_a_packed_sequence_do_not_read_its_pages_as_one(isa):
    """A decode step reads what sequences have in common once, but packed pages are another's tokens in each head."""
    packed = pack(Shape(format=BF16, sequences=(), dtype=torch.bfloat16, page_tokens=16), (Plan(2600, 80, 1, 1),) * 2)
    case, rule = packed.case, AttentionRule(0.1)
    one = only(case.view, 0)
    twins = replace(
        one,
        page_indices=one.page_indices.repeat(4),
        page_starts=starts([len(one.page_indices)] * 4),
        query_starts=starts([1] * 4),
        context_lengths=one.context_lengths.repeat(4),
        cell_starts=one.cell_starts.repeat(4, 1),
    )
    query = case.query[:1].repeat(4, 1, 1)
    alone = NativeKernels(isa).attend(query[:1], case.layer, one, rule)
    together = NativeKernels(isa).attend(query, case.layer, twins, rule)
    assert torch.equal(together, alone.expand_as(together))


def test_tables_that_contradict_themselves_are_refused():
    case, kernels = pack(Shape(format=FP32, sequences=(), page_tokens=16), PLANS[:1]).case, NativeKernels()
    rule, cells = AttentionRule(0.1), case.view.cell_starts
    for view, message in (
        (replace(case.view, cell_starts=cells + 100), "more packed pages"),
        (replace(case.view, cell_starts=cells.flip(1)[:, [0, 1, 2, 3, 4, 5, 0]].contiguous()), "cells of a head"),
        (replace(case.view, cell_starts=cells[:, [0, 1, 2, 6]].contiguous()), "not alike"),
        (replace(case.view, slots=torch.tensor([48]).int()), "follow one another"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.attend(case.query, case.layer, view, rule)
    with pytest.raises(ConfigError, match="cell_starts"):
        kernels.attend(case.query, case.layer, replace(case.view, cell_starts=cells.long()), rule)
    for each in (kernels, ReferenceKernels()):
        with pytest.raises(ConfigError, match="packed pages"):
            each.logits(case.query, case.layer, case.view, rule)


@every_backend
def test_only_layers_that_are_alike_are_packed(backend):
    layouts = tuple(layout for format, layout in PAGES.values() if format is FP32)[:2]
    geometry = PageGeometry(LayerGroup(Reach.FULL, None, layouts), FP32, 16)
    assert geometry.layer_nbytes is None
    assert PageGeometry(LayerGroup(Reach.FULL, None, layouts[:1] * 3), FP32, 16, ((1, BF16),)).layer_nbytes is None
    alike = PageGeometry(LayerGroup(Reach.FULL, None, layouts[:1] * 3), FP32, 16)
    assert [slot.offset for slot, _ in alike.slots] == [number * alike.layer_nbytes for number in range(3)]
    case = build(Shape.of(layouts[0], format=FP32, sequences=((40, 0),), page_tokens=16))
    layer, kept = replace(case.layer, geometry=geometry, layer=0), [torch.arange(16)] * 4
    with pytest.raises((ConfigError, AssertionError), match="alike"):
        kernels_of(backend).pack_tokens(layer, case.whole.page_indices.long(), kept, case.layer.pages[:2].clone(), 0)
