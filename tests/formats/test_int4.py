"""The codes of four bits: bytes, groups, and the errors they may have."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.formats.int4 import INT4_PLAIN
from pagoda.formats.mixed import K8V4
from pagoda.formats.rotated import INT4
from pagoda.layouts.base import Axis, Plane

TOKENS = 32


def plane(width, axis=Axis.CHANNEL, heads=2):
    return Plane("key" if axis is Axis.CHANNEL else "value", heads, width, axis)


def rows(width, seed=0):
    return torch.randn(2, TOKENS, width, generator=torch.Generator().manual_seed(seed))


def decoded(values, plane):
    return INT4_PLAIN.decode(INT4_PLAIN.encode(values, plane), plane)


@pytest.mark.parametrize(("format", "width", "bits"), [(INT4, 64, 4.625), (INT4, 128, 4.5), (INT4, 256, 4.4375)])
def test_what_a_number_takes(format, width, bits):
    planes = plane(width), plane(width, Axis.TOKEN)
    nbytes = sum(format.of(each).plane_nbytes(each, TOKENS) for each in planes)
    assert nbytes * 8 / (2 * 2 * width * TOKENS) == bits


def test_k8v4_takes_what_one_scale_and_one_minimum_took_at_a_head_size_of_64():
    planes = plane(64), plane(64, Axis.TOKEN)
    assert sum(K8V4.plane_nbytes(each, 1) for each in planes) == 2 * (66 + 36)


@settings(max_examples=200)
@given(
    width=st.sampled_from([8, 16, 24, 40, 64, 80, 128, 256]),
    axis=st.sampled_from(Axis),
    seed=st.integers(0, 1000),
    offset=st.sampled_from([0.0, 0.0, 1.0, -30.0]),
    factor=st.sampled_from([1.0, 1e-30, 1e20]),
    outlier=st.sampled_from([1.0, 20.0, 1000.0]),
)
def test_errors_stay_within_their_bound(width, axis, seed, offset, factor, outlier):
    values = rows(width, seed) + offset
    values[..., seed % width] *= outlier
    values *= factor
    errors = (decoded(values, plane(width, axis)) - values).abs()
    assert (errors <= INT4_PLAIN.error_bound(values, plane(width, axis))).all()


def test_a_large_channel_spoils_its_own_group_only():
    values = rows(64)
    small = (decoded(values, plane(64)) - values).square()
    values[..., 7] *= 8
    large = (decoded(values, plane(64)) - values).square()
    assert large[..., :16].mean() > 5 * small[..., :16].mean()
    assert large[..., 16:].mean() < 1.5 * small[..., 16:].mean()


def test_groups_are_worth_their_bytes():
    """A group of 16 has a shorter range than 64 channels have: the mean squared error is less by a third or more."""
    values = rows(64)
    lowest, span = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True) - values.amin(-1, keepdim=True)
    whole = ((values - lowest) / span * 15).round() * span / 15 + lowest
    assert (decoded(values, plane(64)) - values).square().mean() < (whole - values).square().mean() * 2 / 3


@pytest.mark.parametrize("axis", Axis)
def test_numbers_may_all_have_one_sign(axis):
    """Zero is always among the codes, so steps are as long as if the row began there."""
    values = torch.linspace(10, 20, 64).expand(2, TOKENS, 64).contiguous()
    for each in (values, -values):
        assert ((decoded(each, plane(64, axis)) - each).abs() < 1).all()


@pytest.mark.parametrize("axis", Axis)
def test_zeros_stay_zeros(axis):
    values = torch.zeros(2, TOKENS, 64)
    assert torch.equal(decoded(values, plane(64, axis)), values)
