"""Queries that reach all tokens of an encoder, and biases by distance."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cases import starts
from kernels.rounding import FORMATS, tolerance
from pagoda.errors import ConfigError
from pagoda.formats.plain import BF16, FP32
from pagoda.kernels.base import AttentionRule
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import instruction_sets
from pagoda.kernels.reference import ReferenceKernels
from pagoda.layouts.spec import Reach

every_isa = pytest.mark.parametrize("isa", instruction_sets())
TO_ENCODER = AttentionRule(0.125, Reach.ENCODER)


def asked_by(case, num_rows):
    """`case` with queries that are no tokens of its sequences: `num_rows` for each."""
    query = torch.randn(sum(num_rows), case.shape.heads, case.shape.key_width).to(case.shape.dtype)
    return replace(case, query=query, view=replace(case.view, query_starts=starts(list(num_rows))))


def check(isa, case, rule, biases=None):
    expected = ReferenceKernels().attend(case.query, case.layer, case.view, rule, biases=biases)
    actual = NativeKernels(isa).attend(case.query, case.layer, case.view, rule, biases=biases)
    limit = tolerance(case.shape, rule) * float(case.value.abs().max())
    torch.testing.assert_close(actual.float(), expected.float(), rtol=0, atol=limit)


@every_isa
@pytest.mark.parametrize("format", FORMATS, ids=[format.name for format in FORMATS])
def test_more_queries_than_tokens(isa, format, shape, make_case):
    """Long and short inputs, decode beside prefill, and a sequence that computes nothing."""
    dtype = format.model_dtype()
    case = make_case(shape(format=format, dtype=dtype, sequences=((0, 3), (0, 1500), (0, 1), (0, 70)), group=3))
    check(isa, asked_by(case, (200, 1, 5, 0)), TO_ENCODER)


@every_isa
def test_a_row_has_the_same_bits_beside_any_others(isa, shape, make_case):
    case = asked_by(make_case(shape(format=BF16, dtype=torch.bfloat16, sequences=((0, 1500),))), (90,))
    kernels = NativeKernels(isa)
    together = kernels.attend(case.query, case.layer, case.view, TO_ENCODER)
    for row in (0, 17, 89):
        view = replace(case.view, query_starts=starts([1]))
        alone = kernels.attend(case.query[row : row + 1], case.layer, view, TO_ENCODER)
        assert torch.equal(alone[0], together[row])


def test_all_of_the_encoder_is_reached_and_nothing_else(shape, make_case):
    """Every query puts all its weight on one token, the last one in turn, and gets its value."""
    case = make_case(shape(format=FP32, sequences=((0, 45), (0, 33)), group=1))
    query = torch.stack([case.key[44], case.key[0], case.key[77], case.key[45]]) * 8
    view = replace(case.view, query_starts=starts([2, 2]))
    actual = NativeKernels().attend(query, case.layer, view, AttentionRule(1.0, Reach.ENCODER))
    expected = torch.stack([case.value[44], case.value[0], case.value[77], case.value[45]])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)


def test_rows_that_are_tokens_must_be_among_them(shape, make_case):
    case = asked_by(make_case(shape(format=FP32, sequences=((0, 3),))), (5,))
    with pytest.raises(ValueError, match="more new tokens than tokens"):
        NativeKernels().attend(case.query, case.layer, case.view, AttentionRule(0.125))


@every_isa
@settings(max_examples=12)
@given(data=st.data())
def test_biases_by_distance(isa, data, shape, make_case):
    plan = shape(
        format=data.draw(st.sampled_from(FORMATS)),
        dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16])),
        sequences=data.draw(st.sampled_from([((0, 60), (130, 1)), ((700, 3),), ((1500, 1), (0, 20), (40, 9))])),
        group=data.draw(st.integers(1, 3)),
        page_tokens=data.draw(st.sampled_from([16, 32, 48])),
    )
    biases = torch.randn(plan.heads, data.draw(st.sampled_from([1, 2, 16, 33, 128, 300])))
    rule = AttentionRule(
        data.draw(st.sampled_from([0.125, 0.0])), *data.draw(st.sampled_from([(Reach.FULL, None), (Reach.SLIDING, 50)]))
    )
    check(isa, make_case(plan), rule, biases)


def test_biases_decide_which_token_is_seen(shape, make_case):
    """Without keys to tell tokens apart, the bias of one distance gets all the weight."""
    case = make_case(shape(format=FP32, sequences=((0, 100),)))
    biases = torch.full((case.shape.heads, 40), -1e4)
    biases[:, 17] = 0
    out = NativeKernels().attend(case.query, case.layer, case.view, AttentionRule(0.0), biases=biases)
    seen = case.value[[position - 17 for position in range(17, 100)]].repeat_interleave(case.shape.group, dim=1)
    torch.testing.assert_close(out[17:], seen, rtol=0, atol=1e-5)


def test_biases_are_looked_at_again_once_they_are_gone(shape, make_case):
    case, kernels = make_case(shape(format=FP32, sequences=((0, 30),))), NativeKernels()
    for seed in range(3):
        biases = torch.randn(case.shape.heads, 8, generator=torch.Generator().manual_seed(seed))
        expected = ReferenceKernels().attend(case.query, case.layer, case.view, AttentionRule(0.1), biases=biases)
        actual = kernels.attend(case.query, case.layer, case.view, AttentionRule(0.1), biases=biases)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("biases", [torch.zeros(3, 8), torch.zeros(8)], ids=["heads", "axes"])
def test_biases_must_fit_the_heads(biases, shape, make_case):
    case = make_case(shape(format=FP32, sequences=((0, 30),)))
    with pytest.raises(ConfigError, match="biases is"):
        NativeKernels().attend(case.query, case.layer, case.view, AttentionRule(0.1), biases=biases)
