"""Attention over latents, which are keys and values at once: the native kernels against the reference."""

from __future__ import annotations

import pytest
import torch

from pagoda.formats.int4 import INT4_PLAIN
from pagoda.formats.plain import BF16, FP16, FP32
from pagoda.formats.rotated import INT4, INT4_ROTATED
from pagoda.formats.scaled import FP8_E4M3, INT8
from pagoda.kernels.base import AttentionRule, LayerPages
from pagoda.kernels.native import NativeKernels, instruction_sets
from pagoda.kernels.reference import ReferenceKernels
from pagoda.layouts.spec import Reach

CODED = (INT8, FP8_E4M3, INT4, INT4_ROTATED, INT4_PLAIN)
every_isa = pytest.mark.parametrize("isa", instruction_sets())
every_format = pytest.mark.parametrize("format", [FP32, FP16, BF16, *CODED], ids=lambda one: one.name)

# Past and new tokens: decode, prefill, a chunk, lengths around panels, pages, blocks and splits.
SEQUENCES = ((0, 17), (1, 1), (31, 1), (255, 1), (300, 40), (1030, 1), (2100, 1))
RULES = {
    "full": AttentionRule(scale=0.1),
    "window": AttentionRule(scale=0.1, reach=Reach.SLIDING, span=70),
    "capped": AttentionRule(scale=0.1, soft_cap=5.0),
}


def compute_dtype(format):
    return torch.bfloat16 if format in CODED else format.dtype()


def check(isa, case, rule):
    """Sums of up to 2,100 tokens in another order in fp32; in bf16, weights, codes times scales and results rounded."""
    expected = ReferenceKernels().attend(case.query, case.layer, case.view, rule).float()
    actual = NativeKernels(isa).attend(case.query, case.layer, case.view, rule).float()
    assert actual.shape == (len(case.query), case.shape.heads, case.shape.value_width)
    unit = {torch.float32: 2.0**-18, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-5}[case.shape.dtype]
    torch.testing.assert_close(actual, expected, rtol=0, atol=unit * float(case.key.abs().max()))


@every_isa
@every_format
@pytest.mark.parametrize(("latent_width", "rotary_width"), [(64, 16), (512, 64), (40, 8)])
def test_attends_as_the_reference_does(isa, format, latent_width, rotary_width, shape, make_case):
    case = make_case(
        shape(
            format=format,
            sequences=SEQUENCES,
            kv_heads=1,
            group=5,
            key_width=latent_width + rotary_width,
            value_width=latent_width,
            dtype=compute_dtype(format),
            has_latents=True,
        )
    )
    check(isa, case, RULES["full"])


@every_isa
@pytest.mark.parametrize("format", [BF16, INT8], ids=lambda one: one.name)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("heads", [1, 16, 128])
def test_any_number_of_heads_and_any_reach(isa, format, rule, heads, shape, make_case):
    case = make_case(
        shape(
            format=format,
            sequences=SEQUENCES,
            kv_heads=1,
            group=heads,
            key_width=80,
            value_width=64,
            page_tokens=16,
            dtype=torch.bfloat16,
            has_latents=True,
        ),
        seed=1,
    )
    check(isa, case, RULES[rule])


@every_format
def test_stores_the_bytes_that_the_reference_stores(format, shape, make_case):
    case = make_case(
        shape(
            format=format,
            sequences=((0, 50), (0, 33)),
            kv_heads=1,
            key_width=80,
            value_width=64,
            dtype=compute_dtype(format),
            has_latents=True,
        )
    )
    blank: LayerPages = case.blank()
    NativeKernels().store(case.key, None, blank, case.whole)
    assert torch.equal(blank.pages, case.layer.pages)
