"""Attention over latents, which are keys and values at once: the native kernels against the reference."""

from __future__ import annotations

import pytest
import torch

from kernels.cases import Shape
from kernels.rounding import FORMATS, tolerance
from pagoda.formats.mixed import K8V4
from pagoda.formats.plain import BF16
from pagoda.formats.scaled import INT8
from pagoda.kernels.base import AttentionRule
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_arguments import WITH_CONSTANTS
from pagoda.kernels.native_calls import instruction_sets
from pagoda.layouts.spec import Reach

every_isa = pytest.mark.parametrize("isa", instruction_sets())
# A mixture has nothing to mix: latents are keys and values at once.
LATENT_FORMATS = [one for one in FORMATS if one is not K8V4]
every_format = pytest.mark.parametrize("format", LATENT_FORMATS, ids=lambda one: one.name)
KEPT = [*((format, False) for format in LATENT_FORMATS), *((format, True) for format in WITH_CONSTANTS)]

# Past and new tokens: decode, prefill, a chunk, lengths around panels, pages, blocks and splits.
SEQUENCES = ((0, 17), (1, 1), (31, 1), (255, 1), (300, 40), (1030, 1), (2100, 1))
RULES = {
    "full": AttentionRule(scale=0.1),
    "window": AttentionRule(scale=0.1, reach=Reach.SLIDING, span=70),
    "capped": AttentionRule(scale=0.1, soft_cap=5.0),
}


def latents(format, latent_width=64, rotary_width=16, heads=5, sequences=SEQUENCES, **more):
    """The shape of one KV head whose first `latent_width` channels are values."""
    return Shape(
        format=format,
        sequences=sequences,
        kv_heads=1,
        group=heads,
        key_width=latent_width + rotary_width,
        value_width=latent_width,
        dtype=format.model_dtype(),
        has_latents=True,
        **more,
    )


def check(isa, answer, rule):
    case, expected = answer.case, answer.expected.float()
    actual = NativeKernels(isa).attend(case.query, case.layer, case.view, rule, answer.sinks).float()
    assert actual.shape == (len(case.query), case.shape.heads, case.shape.value_width)
    limit = tolerance(case.shape, rule) * float(case.key.abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=limit)


@every_isa
@every_format
@pytest.mark.parametrize("widths", [(64, 16), (512, 64), (40, 8)])
def test_attends_as_the_reference_does(isa, format, widths, kept_answer):
    check(isa, kept_answer(latents(format, *widths), RULES["full"]), RULES["full"])


@every_isa
@pytest.mark.parametrize("format", WITH_CONSTANTS, ids=lambda one: one.name)
@pytest.mark.parametrize("widths", [(64, 16), (512, 64)])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_what_latents_have_in_common_is_given_back(isa, format, widths, has_sinks, kept_answer):
    rule = RULES["full"]
    check(isa, kept_answer(latents(format, *widths, has_constants=True), rule, has_sinks), rule)


@every_isa
@pytest.mark.parametrize("format", [BF16, INT8], ids=lambda one: one.name)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("heads", [1, 16, 128])
def test_any_number_of_heads_and_any_reach(isa, format, rule, heads, kept_answer):
    check(isa, kept_answer(latents(format, heads=heads, page_tokens=16), RULES[rule]), RULES[rule])


@pytest.mark.parametrize(("format", "has_constants"), KEPT, ids=lambda one: getattr(one, "name", str(one)))
def test_stores_the_bytes_that_the_reference_stores(format, has_constants, make_case):
    case = make_case(latents(format, sequences=((0, 50), (0, 33)), has_constants=has_constants))
    blank = case.blank()
    NativeKernels().store(case.key, None, blank, case.whole)
    assert torch.equal(blank.pages, case.layer.pages)
