"""The guards of every attention call: what would be silently wrong stops with a named error."""

from __future__ import annotations

import pytest
import torch

from pagoda.errors import UnsupportedModelError
from pagoda.formats.page import PageGeometry
from pagoda.formats.plain import FP32
from pagoda.kernels.base import AttentionRule, GroupView, LayerPages
from pagoda.kernels.reference import ReferenceKernels, attend_dense
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.models.attention import BoundSite, PagedStep, in_flight, paged_attention

ROWS, HEADS, KV_HEADS, WIDTH = 5, 4, 2, 8
RULE = AttentionRule(scale=0.5)


def make_step(writes: tuple[bool, ...] = (True,), rows: int = ROWS) -> PagedStep:
    group = LayerGroup(Reach.FULL, None, (AttentionLayout(KV_HEADS, WIDTH, WIDTH),))
    geometry = PageGeometry(group, FP32, 16)
    layer = LayerPages(torch.zeros(1, geometry.page_nbytes, dtype=torch.uint8), geometry, 0)
    table = [torch.tensor(values, dtype=torch.int32) for values in ([0], [0, 1], [0, rows], [rows])]
    kernels = ReferenceKernels()
    sites = tuple(BoundSite(RULE, layer, 0, write, kernels) for write in writes)
    return PagedStep(kernels.layers, sites, (GroupView(*table),))


def random_call(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, heads, rows, WIDTH, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS))


def test_a_call_stores_and_attends():
    query, key, value = random_call()
    with in_flight(make_step()):
        out, weights = paged_attention(torch.nn.Identity(), query, key, value, scaling=0.5)
    assert out.shape == (1, ROWS, HEADS, WIDTH)
    assert weights is None
    expected = attend_dense(query[0].transpose(0, 1), key[0], value[0], RULE, None)
    torch.testing.assert_close(out[0], expected)


def test_a_shared_site_reads_what_an_earlier_one_stored():
    query, key, value = random_call()
    step = make_step(writes=(True, False))
    with in_flight(step):
        first, _ = paged_attention(torch.nn.Identity(), query, key, value)
        second, _ = paged_attention(torch.nn.Identity(), query, key * 0, value * 0)
    torch.testing.assert_close(first, second)


def test_a_mask_is_refused():
    with pytest.raises(UnsupportedModelError, match="mask of its own"), in_flight(make_step()):
        paged_attention(torch.nn.Identity(), *random_call(), torch.zeros(1, 1, ROWS, ROWS))


@pytest.mark.parametrize("rows", [ROWS - 1, ROWS + 1])
def test_rows_other_than_those_of_the_step_are_refused(rows):
    with pytest.raises(UnsupportedModelError, match="in a step of 5 tokens"), in_flight(make_step()):
        paged_attention(torch.nn.Identity(), *random_call(rows))


def test_keys_that_are_not_the_tokens_of_the_step_are_refused():
    query, key, value = random_call()
    with pytest.raises(UnsupportedModelError, match="5 queries and 3 keys"), in_flight(make_step()):
        paged_attention(torch.nn.Identity(), query, key[:, :, :3], value[:, :, :3])


def test_a_scale_other_than_at_load_is_refused():
    with pytest.raises(UnsupportedModelError, match="does not depend on the input"), in_flight(make_step()):
        paged_attention(torch.nn.Identity(), *random_call(), scaling=0.25)


def test_more_calls_than_at_load_are_refused():
    with in_flight(make_step()):
        paged_attention(torch.nn.Identity(), *random_call())
        with pytest.raises(UnsupportedModelError, match="more than the 1 times"):
            paged_attention(torch.nn.Identity(), *random_call())


def test_fewer_calls_than_at_load_are_refused():
    step = make_step((True, True))
    with pytest.raises(UnsupportedModelError, match="attended 1 times in one step, but 2"), in_flight(step):
        paged_attention(torch.nn.Identity(), *random_call())


def test_a_failing_step_does_not_stay_in_flight():
    with pytest.raises(ZeroDivisionError), in_flight(make_step()):
        raise ZeroDivisionError
    with pytest.raises(UnsupportedModelError, match="outside a step"):
        paged_attention(torch.nn.Identity(), *random_call())
