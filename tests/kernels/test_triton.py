"""The Triton kernels, interpreted, against the reference: every format, layout and rule in small shapes."""

from dataclasses import replace

import pytest
import torch

from kernels.cases import starts
from kernels.interpreted import SMALL, TritonAttention
from kernels.rounding import FORMATS, tolerance
from pagoda.errors import ConfigError
from pagoda.formats.int4 import INT4_PLAIN
from pagoda.formats.mixed import K8V4
from pagoda.formats.plain import BF16, FP16, FP32
from pagoda.formats.rotated import INT4, INT4_ROTATED
from pagoda.formats.scaled import FP8_E4M3, FP8_E5M2, INT8
from pagoda.kernels.base import AttentionRule
from pagoda.kernels.native_arguments import WITH_CONSTANTS
from pagoda.kernels.reference import ReferenceKernels
from pagoda.kernels.sight import Sight
from pagoda.kernels.triton.plan import Room, tables_of
from pagoda.layouts.spec import Reach

# NumPy, which interprets, warns of what is tested here: overflow, and what is not a number.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
KEPT = [*((format, False) for format in FORMATS), *((format, True) for format in (*WITH_CONSTANTS, K8V4))]
every_kept = pytest.mark.parametrize(
    ("format", "has_constants"), KEPT, ids=[f"{each.name}{'-constants' * apart}" for each, apart in KEPT]
)
# Decode beside a prompt, a draft, and a sequence that computes nothing: few rows and many, several splits of each.
MIXED = ((40, 1), (0, 18), (17, 2), (9, 0))
PLAIN = AttentionRule(0.125)
TINY = {"kv_heads": 1, "group": 3, "key_width": 16, "value_width": 16, "page_tokens": 16}


def check(case, rule=PLAIN, sinks=None, biases=None):
    expected = ReferenceKernels().attend(case.query, case.layer, case.view, rule, sinks, biases)
    actual = TritonAttention(SMALL).attend(case.query, case.layer, case.view, rule, sinks, biases)
    assert actual.dtype is expected.dtype
    assert actual.is_contiguous()
    values = case.key if case.value is None else case.value
    limit = tolerance(case.shape, rule) * float(values.abs().max())
    torch.testing.assert_close(actual.float(), expected.float(), rtol=0, atol=limit)


def stored(case):
    layer = case.blank()
    TritonAttention(SMALL).store(case.key, case.value, layer, case.whole)
    return layer.pages


@every_kept
def test_attends_and_stores_as_the_reference_does(format, has_constants, shape, make_case):
    case = make_case(
        shape(
            format=format,
            dtype=format.model_dtype(),
            sequences=MIXED,
            kv_heads=1,
            group=3,
            key_width=32,
            value_width=32,
            page_tokens=16,
            has_constants=has_constants,
        )
    )
    check(case)
    assert torch.equal(stored(case), case.layer.pages)


def label(value):
    return getattr(value, "name", str(value))


@pytest.mark.parametrize(
    ("format", "widths"),
    [
        (BF16, (96, 38)),
        (INT8, (72, 38)),
        (INT4, (80, 80)),
        (INT4_ROTATED, (48, 40)),
        (INT4_PLAIN, (24, 128)),
        (K8V4, (8, 24)),
        (FP16, (6, 1)),
    ],
    ids=label,
)
def test_widths_that_are_no_powers_of_two(format, widths, shape, make_case):
    key_width, value_width = widths
    case = make_case(
        shape(
            format=format,
            dtype=format.model_dtype(),
            sequences=((0, 18), (40, 1)),
            kv_heads=1,
            group=2,
            key_width=key_width,
            value_width=value_width,
            page_tokens=48,
        )
    )
    check(case)
    assert torch.equal(stored(case), case.layer.pages)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format", [FP32, FP16, BF16, INT8, INT4], ids=lambda one: one.name)
def test_queries_of_another_type_than_pages(dtype, format, shape, make_case):
    case = make_case(
        shape(
            format=format, dtype=dtype, sequences=((30, 2),), kv_heads=1, key_width=32, value_width=32, page_tokens=16
        )
    )
    check(case)
    assert torch.equal(stored(case), case.layer.pages)


RULES = {
    "sliding": AttentionRule(0.125, Reach.SLIDING, 30),
    "chunked": AttentionRule(0.125, Reach.CHUNKED, 24, soft_cap=5.0),
    "capped": AttentionRule(0.3, soft_cap=5.0),
    "slopes": AttentionRule(0.125, slopes=(0.0, 0.5, 0.25)),
    "window_slopes": AttentionRule(-0.1, Reach.SLIDING, 40, slopes=(0.0, 0.5, 0.25)),
    "encoder": AttentionRule(0.125, Reach.ENCODER),
    "nothing": AttentionRule(0.0),
    "against": AttentionRule(-0.1),
}


@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_rules(rule, has_sinks, shape, make_case):
    case = make_case(
        shape(format=FP32, sequences=MIXED, kv_heads=1, group=3, key_width=16, value_width=16, page_tokens=16)
    )
    check(case, RULES[rule], torch.linspace(-1, 3, 3) if has_sinks else None)


@pytest.mark.parametrize("distances", [1, 33, 300])
def test_biases_by_distance(distances, shape, make_case):
    case = make_case(
        shape(format=FP32, sequences=MIXED, kv_heads=1, group=3, key_width=16, value_width=16, page_tokens=16)
    )
    check(case, biases=torch.randn(3, distances))


def test_more_queries_than_tokens_of_an_encoder(shape, make_case):
    case = make_case(shape(format=BF16, dtype=torch.bfloat16, sequences=((0, 3), (0, 70)), **TINY))
    query = torch.randn(21, case.shape.heads, 16).bfloat16()
    check(replace(case, query=query, view=replace(case.view, query_starts=starts([20, 1]))), RULES["encoder"])


LATENTS = [
    *((format, (64, 16), False) for format in (FP32, FP16, BF16, INT8, FP8_E4M3, INT4, INT4_PLAIN)),
    *((format, (64, 16), True) for format in (INT8, INT4_ROTATED)),
    (BF16, (40, 8), False),
    (INT8, (128, 32), False),
    (INT4, (40, 8), True),
]


@pytest.mark.parametrize(("format", "widths", "has_constants"), LATENTS, ids=label)
def test_latents(format, widths, has_constants, shape, make_case):
    latent_width, rotary_width = widths
    case = make_case(
        shape(
            format=format,
            dtype=format.model_dtype(),
            sequences=((40, 1), (3, 17)),
            kv_heads=1,
            group=3,
            key_width=latent_width + rotary_width,
            value_width=latent_width,
            page_tokens=16,
            has_latents=True,
            has_constants=has_constants,
        )
    )
    check(case, replace(PLAIN, scale=0.1), torch.linspace(-1, 3, 3) if has_constants else None)
    assert torch.equal(stored(case), case.layer.pages)


@pytest.mark.parametrize("sequence", [(28, 122), (25, 14)])
@pytest.mark.parametrize("rule", [PLAIN, AttentionRule(0.125, Reach.SLIDING, 20)], ids=["full", "sliding"])
def test_rows_of_a_block_are_done_with_different_splits(sequence, rule, shape, make_case):
    """Of many rows and of few: some have all of theirs in a split, which the next split has nothing to say of."""
    check(make_case(shape(format=FP32, sequences=(sequence,), **TINY)), rule)


@pytest.mark.parametrize(
    ("format", "past", "new", "cut"), [(INT4, 0, 40, 17), (BF16, 71, 45, 21), (INT4, 90, 3, 1)], ids=label
)
def test_a_row_has_the_same_bits_in_every_batch(format, past, new, cut, shape, make_case):
    """Alone with the rows of its chunk or beside others, in chunks of any size that are few, or many.

    Scores are so large, and results so exact, that rounding shows.
    """
    sizes = {"kv_heads": 1, "group": 3, "key_width": 32, "value_width": 32, "page_tokens": 16}
    sequences = ((past, new), (40, 1), (5, 18))
    case = make_case(shape(format=format, sequences=sequences, **sizes))
    kernels, rule = TritonAttention(SMALL), AttentionRule(2.0, Reach.SLIDING, 80)
    together = kernels.attend(case.query, case.layer, case.view, rule)[:new]
    for first, last in [(0, new), (0, cut), (cut, new)]:
        view = replace(
            case.view,
            query_starts=starts([last - first, 0, 0]),
            context_lengths=torch.tensor([past + last, 41, 23]).int(),
        )
        assert torch.equal(kernels.attend(case.query[first:last], case.layer, view, rule), together[first:last])


@pytest.mark.parametrize("format", [INT8, INT4, FP8_E4M3, FP8_E5M2], ids=label)
def test_instructions_of_nvidia_compute_what_plain_ones_do(format, shape, make_case):
    case = make_case(shape(format=format, dtype=torch.bfloat16, sequences=MIXED, **TINY))
    results = [
        TritonAttention(SMALL, has_ptx).attend(case.query, case.layer, case.view, PLAIN) for has_ptx in (False, True)
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize("format", [INT8, INT4], ids=label)
@pytest.mark.parametrize(
    ("exponents", "has_sinks"), [((-90, -90), False), ((60, 60), True), ((-80, 0), False), ((-20, 20), True)]
)
def test_what_meets_codes_in_fp16_may_have_any_size(format, exponents, has_sinks, shape, make_case):
    """Queries beyond fp16, and values of tokens far larger or smaller than those of others."""
    case = make_case(shape(format=format, dtype=torch.bfloat16, sequences=MIXED, **TINY))
    least, most = exponents
    factors = 2.0 ** torch.randint(least, most + 1, (len(case.value), 1, 1))
    factors[::7] = 2.0**least
    values = (case.value * factors).bfloat16()
    ReferenceKernels().store(case.key * 2.0**-40, values, case.layer, case.whole)
    large = replace(case, query=case.query * 2.0**40, value=values)
    check(large, sinks=torch.linspace(-1, 3, case.shape.heads) if has_sinks else None)


@pytest.mark.parametrize("reach", [Reach.SLIDING, Reach.CHUNKED])
@pytest.mark.parametrize("format", [BF16, FP8_E4M3], ids=lambda one: one.name)
def test_pages_out_of_reach_are_not_read(format, reach, shape, make_case):
    sequences = ((100, 1), (70, 20))
    case = make_case(shape(format=format, dtype=torch.bfloat16, sequences=sequences, **TINY))
    rule, kernels = AttentionRule(0.125, reach, 25), TritonAttention(SMALL)
    expected = kernels.attend(case.query, case.layer, case.view, rule)
    tables, first_pages = case.view.page_indices.clone(), case.view.page_starts
    for sequence, (past, new) in enumerate(sequences):
        reached = Sight.of_last(new, past + new, rule).reached.any(0)
        gone = int(reached.nonzero()[0]) // case.shape.page_tokens
        tables[first_pages[sequence] : first_pages[sequence] + gone] = -1
    assert expected.isfinite().all()
    assert torch.equal(kernels.attend(case.query, case.layer, replace(case.view, page_indices=tables), rule), expected)


def test_a_nan_of_one_sequence_stays_with_it(shape, make_case):
    case = make_case(shape(format=FP32, sequences=((40, 3), (50, 3)), **TINY))
    first_pages = case.view.page_starts
    case.layer.pages[case.view.page_indices[first_pages[1] : first_pages[2]].long()] = 0xFF
    out = TritonAttention(SMALL).attend(case.query, case.layer, case.view, PLAIN)
    assert out[:3].isfinite().all()
    assert out[3:].isnan().all()


def test_a_recorded_step_follows_its_tables(shape, make_case):
    """Launches of a recorded step depend on the sizes of its tensors alone; what is in them may change."""
    sizes = {"kv_heads": 1, "key_width": 32, "value_width": 32, "page_tokens": 16}
    sequences = ((100, 1), (0, 1), (37, 2))
    case = make_case(shape(format=INT8, dtype=torch.bfloat16, sequences=sequences, **sizes))
    kernels, view = TritonAttention(SMALL), case.view
    kernels.record(view, tables_of(view), Room.of(view), few_rows=2)
    for lengths in ([101, 1, 39], [3, 1, 38]):
        view.context_lengths.copy_(torch.tensor(lengths))
        expected = TritonAttention(SMALL).attend(case.query, case.layer, replace(view), PLAIN)
        assert torch.equal(kernels.attend(case.query, case.layer, view, PLAIN), expected)
    with pytest.raises(ConfigError, match="up to 16 rows"):
        kernels.record(view, tables_of(view), Room.of(view), few_rows=17)


def test_heads_must_share_evenly(shape, make_case):
    case = make_case(shape(format=FP32, sequences=((0, 3),), kv_heads=2, key_width=16, value_width=16))
    with pytest.raises(ConfigError, match="cannot share"):
        TritonAttention(SMALL).attend(case.query[:, :3], case.layer, case.view, PLAIN)
