"""Sequences on the same pages read them together, and nothing else changes: not one bit of any row."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.formats.plain import BF16, FP16, FP32
from pagoda.formats.scaled import INT8
from pagoda.kernels.base import AttentionRule, GroupView
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import instruction_sets
from pagoda.kernels.reference import ReferenceKernels
from pagoda.layouts.spec import Reach

PAGE_TOKENS = 32
POOL_TOKENS = 9216

every_isa = pytest.mark.parametrize("isa", instruction_sets())


@pytest.fixture(scope="module", params=[FP32, FP16, BF16, INT8], ids=lambda one: one.name)
def pool(request, shape, make_case):
    """Pages with numbers in all of them: any table may name any page."""
    dtype = torch.bfloat16 if request.param in (BF16, INT8) else request.param.dtype()
    sequences = ((POOL_TOKENS, 0),)
    return make_case(shape(format=request.param, dtype=dtype, group=3, sequences=sequences, page_tokens=PAGE_TOKENS))


def view_of(pool, tables, lengths, new_tokens):
    """`tables` count the pages that were filled."""

    def starts(counts):
        return torch.tensor([0, *counts]).cumsum(0).int()

    used = [table[: -(-length // PAGE_TOKENS)] for table, length in zip(tables, lengths, strict=True)]
    filled = torch.tensor([page for table in used for page in table])
    return GroupView(
        pool.view.page_indices[filled], starts(map(len, used)), starts(new_tokens), torch.tensor(lengths).int()
    )


def attend(pool, view, rule, kernels, seed=0):
    rows = int(view.query_starts[-1])
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, pool.shape.heads, pool.shape.key_width, generator=generator).to(pool.shape.dtype)
    return kernels.attend(query, pool.layer, view, rule)


@st.composite
def batches(draw):
    """Tables that follow an earlier one up to some page and then go their own way; most have one new token."""
    num_pages = POOL_TOKENS // PAGE_TOKENS
    tables, lengths, new_tokens = [], [], []
    for _ in range(draw(st.integers(2, 7))):
        own = torch.randperm(num_pages, generator=torch.Generator().manual_seed(draw(st.integers(0, 999)))).tolist()
        parent = draw(st.sampled_from([[], *tables]))
        depth = draw(st.sampled_from([0, 31, 32, 33, 64, 70, 96]))
        tables.append((parent[:depth] + own)[:num_pages])
        lengths.append(draw(st.sampled_from([1, 900, 1024, 1025, 2047, 2048, 2100, 3072, 3333])))
        new_tokens.append(min(draw(st.sampled_from([1, 1, 1, 0, 5])), lengths[-1]))
    new_tokens[0] = 1
    return tables, lengths, new_tokens


rules = st.sampled_from(
    [
        AttentionRule(0.125),
        AttentionRule(0.125, soft_cap=20.0),
        AttentionRule(0.125, Reach.SLIDING, 1500),
        AttentionRule(0.125, Reach.CHUNKED, 2048),
    ]
)


@every_isa
@settings(max_examples=12)
@given(batch=batches(), rule=rules, is_slanted=st.booleans())
def test_shared_reads_change_no_bit(isa, pool, batch, rule, is_slanted):
    rule = replace(rule, slopes=tuple(2.0**-head for head in range(pool.shape.heads)) if is_slanted else None)
    view = view_of(pool, *batch)
    alone = attend(pool, view, rule, NativeKernels(isa, shares_prefixes=False))
    assert torch.equal(attend(pool, view, rule, NativeKernels(isa)), alone)


def test_shared_reads_give_what_the_reference_gives(pool):
    """Two branches of a tree, eleven leaves: more than one tile holds, and one sequence that shares nothing."""
    trunk = list(range(200))
    branch = trunk[:40] + list(range(240, 280))
    tables = [trunk] * 6 + [branch] * 5 + [trunk[::-1]]
    lengths = [2500, 2400, 2048, 2049, 1100, 1024, 2300, 2050, 2060, 2070, 2080, 2200]
    view = view_of(pool, tables, lengths, [1] * 12)
    expected = attend(pool, view, AttentionRule(0.125), ReferenceKernels())
    actual = attend(pool, view, AttentionRule(0.125), NativeKernels())
    # Weighted means of numbers below 5; both round weights and results to the type of the queries.
    unit = {torch.float32: 2.0**-20, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[pool.shape.dtype]
    torch.testing.assert_close(actual.float(), expected.float(), rtol=0, atol=5 * 4 * unit)


def test_the_sequences_of_a_shared_page_see_one_change(pool):
    """The page is read for both, so a NaN in it reaches both, and a third sequence stays clean."""
    own = list(range(64, 128))
    tables = [list(range(64)), list(range(64)), own]
    view = view_of(pool, tables, [2048] * 3, [1] * 3)
    pages = pool.layer.pages.clone()
    pages[int(pool.view.page_indices[3])] = 0xFF
    broken = replace(pool, layer=replace(pool.layer, pages=pages))
    out = attend(broken, view, AttentionRule(0.125), NativeKernels()).isnan().flatten(1).any(1)
    assert out.tolist() == [True, True, False]
