"""The native kernels against the reference, at every instruction set this machine has."""

import itertools
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cases import answered, build
from kernels.rounding import CODED, FORMATS, ROUNDING_UNIT, tolerance
from pagoda.formats.mixed import K8V4
from pagoda.formats.plain import BF16, FP16, FP32
from pagoda.kernels.base import AttentionRule, LayerPages
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_arguments import WITH_CONSTANTS
from pagoda.kernels.native_calls import instruction_sets
from pagoda.kernels.reference import ReferenceKernels
from pagoda.kernels.sight import Sight
from pagoda.layouts.base import Axis
from pagoda.layouts.spec import Reach

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

every_isa = pytest.mark.parametrize("isa", instruction_sets())
every_format = pytest.mark.parametrize("format", FORMATS, ids=[format.name for format in FORMATS])
KEPT = [*((format, False) for format in FORMATS), *((format, True) for format in (*WITH_CONSTANTS, K8V4))]
# Every format, and those that may be without what keys have in common.
every_kept = pytest.mark.parametrize(
    ("format", "has_constants"), KEPT, ids=[f"{each.name}{'-constants' * apart}" for each, apart in KEPT]
)


def check_attend(isa, answer, rule):
    case, expected = answer.case, answer.expected
    actual = NativeKernels(isa).attend(case.query, case.layer, case.view, rule, answer.sinks)
    assert actual.dtype == expected.dtype
    assert actual.is_contiguous()
    limit = tolerance(case.shape, rule) * float(case.value.abs().max())
    torch.testing.assert_close(actual.float(), expected.float(), rtol=0, atol=limit)


def slopes_of(heads):
    """From none, over those of a few tokens' reach, to such that distance hardly matters."""
    return (0.0, *(2.0**-head for head in range(1, heads)))


spans = st.integers(1, 400)
rules = st.builds(
    AttentionRule,
    scale=st.sampled_from([0.125, 0.3, 0.0, -0.1]),
    reach=st.sampled_from(Reach),
    span=st.one_of(st.none(), spans),
    soft_cap=st.sampled_from([None, None, 5.0, 30.0]),
)
sequences = st.lists(st.tuples(st.integers(0, 400), st.sampled_from([0, 1, 1, 2, 17, 60])), min_size=1, max_size=4)
sequences = sequences.filter(lambda pairs: sum(map(sum, pairs)) > 0)


@st.composite
def shapes(draw, shape):
    format = draw(st.sampled_from(FORMATS))
    key_unit, value_unit = (format.width_multiple(axis) for axis in (Axis.CHANNEL, Axis.TOKEN))
    return shape(
        format=format,
        dtype=draw(st.sampled_from(DTYPES)),
        sequences=tuple(draw(sequences)),
        kv_heads=draw(st.integers(1, 3)),
        group=draw(st.integers(1, 9)),
        key_width=draw(st.sampled_from([32, 64, 80]) | st.integers(1, 140 // key_unit).map(lambda n: n * key_unit)),
        value_width=draw(
            st.sampled_from([32, 64, 80]) | st.integers(1, 140 // value_unit).map(lambda n: n * value_unit)
        ),
        page_tokens=16 * draw(st.integers(1, 6)),
        has_constants=draw(st.booleans()) and format in (*WITH_CONSTANTS, K8V4),
    )


@every_isa
@settings(max_examples=16)
@given(data=st.data())
def test_attends_as_the_reference_does(isa, data, shape, make_case):
    case = make_case(data.draw(shapes(shape)), data.draw(st.integers(0, 99)))
    slopes = slopes_of(case.shape.heads) if data.draw(st.booleans()) else None
    rule = replace(data.draw(rules), slopes=slopes)
    check_attend(isa, answered(case, rule, data.draw(st.booleans())), rule)


@every_isa
@every_kept
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attends_to_long_contexts_in_mixed_batches(isa, format, has_constants, dtype, shape, kept_answer):
    """Contexts of several splits and blocks, decode beside prefill, and tiles that end inside a token's heads."""
    sequences = ((2100, 1), (0, 40), (1100, 9), (5, 0))
    plan = shape(format=format, dtype=dtype, group=7, sequences=sequences, has_constants=has_constants)
    capped = AttentionRule(0.125, Reach.SLIDING, 1500, soft_cap=20.0)
    for rule in (AttentionRule(0.125), capped, AttentionRule(0.125, slopes=slopes_of(14))):
        check_attend(isa, kept_answer(plan, rule, rule is capped), rule)


@lru_cache(maxsize=1)
def pointing(plan):
    """A case each row of which puts all its weight on one token, and the values of these."""
    case = build(plan)
    tokens = []
    for (past, new), first in zip(plan.sequences, case.whole.query_starts.tolist(), strict=False):
        tokens += [first + position * 7919 % (position + 1) for position in range(past, past + new)]
    query = (case.key[tokens] * 8).repeat_interleave(plan.group, dim=1)
    return replace(case, query=query), case.value[tokens].repeat_interleave(plan.group, dim=1)


@every_isa
@pytest.mark.parametrize(
    ("page_tokens", "key_width", "value_width"),
    [(16, 64, 64), (48, 96, 80), (128, 192, 128), (512, 72, 38), (48, 72, 38), (512, 64, 64), (16, 192, 128)],
)
@pytest.mark.parametrize("format", [BF16, *CODED], ids=lambda one: one.name)
def test_the_right_token_is_found(isa, format, page_tokens, key_width, value_width, shape):
    """Rounding could hide the loss of a token, so each row must return the value of the one that it points to."""
    plan = shape(
        format=format,
        dtype=torch.bfloat16,
        sequences=((0, 150), (280, 23), (1030, 1)),
        key_width=key_width,
        value_width=value_width + -value_width % format.width_multiple(Axis.TOKEN),
        page_tokens=page_tokens,
    )
    case, expected = pointing(plan)
    actual = NativeKernels(isa).attend(case.query, case.layer, case.view, AttentionRule(1.0))
    if format is BF16:
        assert torch.equal(actual, expected)
        return
    kept = expected.transpose(0, 1).float()
    error = (actual.transpose(0, 1).float() - kept).abs()
    bound = format.error_bound(kept, case.layer.value.plane)
    assert (error <= bound + kept.abs() * 2 * ROUNDING_UNIT[torch.bfloat16]).all()


@every_isa
@every_kept
@pytest.mark.usefixtures("two_threads")
def test_a_row_has_the_same_bits_in_every_batch(isa, format, has_constants, shape, kept_case):
    """A prompt computed at once, in chunks, beside others or on one thread: cold and warm runs must not differ."""
    dtype = format.model_dtype()
    kernels, rule = NativeKernels(isa), AttentionRule(0.125, Reach.SLIDING, 2100)
    # From the beginning, and where contexts are of several splits and go beyond what is in reach.
    for past, new, cuts in ((0, 300, (0, 1, 100, 299, 300)), (1900, 400, (0, 1, 150, 399, 400))):
        plan = shape(format=format, dtype=dtype, group=3, sequences=((past, new),), has_constants=has_constants)
        whole = kept_case(plan)
        expected = kernels.attend(whole.query, whole.layer, whole.view, rule)
        for first, last in itertools.pairwise(cuts):
            starts = torch.tensor([0, last - first], dtype=torch.int32)
            length = torch.tensor([past + last], dtype=torch.int32)
            view = replace(whole.view, query_starts=starts, context_lengths=length)
            assert torch.equal(kernels.attend(whole.query[first:last], whole.layer, view, rule), expected[first:last])
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            assert torch.equal(kernels.attend(whole.query, whole.layer, whole.view, rule), expected)
        finally:
            torch.set_num_threads(num_threads)


@every_isa
@every_kept
@pytest.mark.parametrize("reach", [Reach.SLIDING, Reach.CHUNKED])
def test_pages_out_of_reach_are_not_read(isa, format, has_constants, reach, shape, kept_case):
    sequences, dtype = ((900, 1), (700, 33)), format.model_dtype()
    case = kept_case(shape(format=format, dtype=dtype, sequences=sequences, has_constants=has_constants))
    rule = AttentionRule(0.125, reach, 100)
    kernels = NativeKernels(isa)
    expected = kernels.attend(case.query, case.layer, case.view, rule)
    tables, starts = case.view.page_indices.clone(), case.view.page_starts
    for sequence, (past, new) in enumerate(case.shape.sequences):
        reached = Sight.of_last(new, past + new, rule).reached.any(0)
        first_page = int(reached.nonzero()[0]) // case.shape.page_tokens
        tables[starts[sequence] : starts[sequence] + first_page] = -1  # names no page: reading it would fail
    view = replace(case.view, page_indices=tables)
    assert torch.equal(kernels.attend(case.query, case.layer, view, rule), expected)


@every_isa
@settings(max_examples=10)
@given(data=st.data())
def test_stores_what_the_reference_stores(isa, data, shape, make_case):
    case = make_case(data.draw(shapes(shape)), data.draw(st.integers(0, 99)))
    pages = case.blank()
    NativeKernels(isa).store(case.key, case.value, pages, case.whole)
    assert torch.equal(pages.pages, case.layer.pages)


@every_format
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stored_numbers_are_rounded_as_torch_rounds(format, dtype, shape, make_case):
    """Ties, subnormals, overflow and infinity."""
    case = make_case(shape(format=format, dtype=dtype, sequences=((0, 64),)))
    exponents = torch.arange(-45, 39).repeat(100)[: case.key.numel()].view(case.key.shape)
    key = (case.key.float() * 10.0**exponents).to(dtype)
    key.view(-1)[:4] = torch.tensor([65519.0, 65520.0, 1.00390625, float("inf")]).to(dtype)
    expected, actual = case.blank(), case.blank()
    ReferenceKernels().store(key, case.value, expected, case.whole)
    NativeKernels().store(key, case.value, actual, case.whole)
    assert torch.equal(actual.pages, expected.pages)


@every_format
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("plane", ["key", "value"])
def test_a_sequence_that_stores_what_is_not_finite_is_marked(format, broken, plane, shape, make_case):
    case = make_case(shape(format=format, dtype=format.model_dtype(), sequences=((0, 40), (0, 3), (0, 70), (0, 9))))
    getattr(case, plane)[41, 1, 13] = broken
    getattr(case, plane)[-1, 0, 0] = broken
    for kernels in (NativeKernels(), ReferenceKernels()):
        finite = torch.ones(4, dtype=torch.uint8)
        kernels.store(case.key, case.value, case.blank(), case.whole, finite)
        assert finite.tolist() == [1, 0, 1, 0]


def test_what_overflows_a_narrow_format_is_marked(shape, make_case):
    case = make_case(shape(format=FP16, dtype=torch.float32, sequences=((0, 4), (0, 4))))
    case.key[5, 0, 0] = 1e6
    for kernels in (NativeKernels(), ReferenceKernels()):
        finite = torch.ones(2, dtype=torch.uint8)
        kernels.store(case.key, case.value, case.blank(), case.whole, finite)
        assert finite.tolist() == [1, 0]


@every_isa
def test_rows_may_be_slices_of_a_fused_projection(isa, shape, make_case):
    case = make_case(shape(format=FP32, sequences=((0, 40),)))
    kernels = NativeKernels(isa)
    rows = torch.cat([case.query, case.key, case.value], dim=1)
    query, key, value = rows.split([8, 2, 2], dim=1)
    pages = case.blank()
    kernels.store(key, value, pages, case.whole)
    assert torch.equal(pages.pages, case.layer.pages)
    expected = kernels.attend(case.query, case.layer, case.view, AttentionRule(0.125))
    assert torch.equal(kernels.attend(query, pages, case.view, AttentionRule(0.125)), expected)
    turned = case.query.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(kernels.attend(turned, case.layer, case.view, AttentionRule(0.125)), expected)


@every_isa
def test_a_nan_of_one_sequence_stays_with_it(isa, shape, make_case):
    case = make_case(shape(format=FP32, sequences=((40, 3), (50, 3))))
    starts = case.view.page_starts
    case.layer.pages[case.view.page_indices[starts[1] : starts[2]].long()] = 0xFF
    out = NativeKernels(isa).attend(case.query, case.layer, case.view, AttentionRule(0.125))
    assert out[:3].isfinite().all()
    assert out[3:].isnan().all()


@pytest.mark.parametrize("format", [*WITH_CONSTANTS, K8V4], ids=lambda one: one.name)
def test_what_keys_have_in_common_costs_no_code(format, shape, make_case):
    """Keys a thousand times as large as their differences are as exact as the differences would be."""
    case = make_case(shape(format=format, sequences=((0, 300),), has_constants=True))
    constants = replace(case.layer.constants, bases=case.layer.constants.bases * 1000)
    layer = replace(case.blank(), constants=constants)
    pages = torch.arange(300) // case.shape.page_tokens
    apart = torch.randn(case.key.shape, generator=torch.Generator().manual_seed(3))
    key = apart * constants.scales + constants.common(pages)
    ReferenceKernels().store(key, case.value, layer, case.whole)
    slot = layer.key
    data = layer.pages[case.whole.page_indices.long(), slot.offset : slot.offset + slot.nbytes]
    found = constants.given_back(format.decode(data, slot.plane))[:, :300]
    bound = constants.error_bound(format.error_bound(apart.transpose(0, 1), slot.plane), key.transpose(0, 1))
    assert ((found - key.transpose(0, 1)).abs() <= bound).all()
    assert bound.max() < key.abs().max() / 100


def test_layers_of_a_page_are_kept_apart(shape, make_case):
    case = make_case(shape(format=BF16, sequences=((0, 33),), page_tokens=16))
    other = LayerPages(case.layer.pages, case.layer.geometry, 2)
    before = case.layer.pages.clone()
    NativeKernels().store(case.key, case.value, other, case.whole)
    slots = case.layer.geometry.slots
    changed = (case.layer.pages != before).any(0).nonzero()
    assert changed.min() >= slots[2][0].offset
    assert changed.max() < slots[2][1].offset + slots[2][1].nbytes
