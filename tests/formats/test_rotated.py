"""Rotated rows: the transform is orthonormal and its own inverse, and spreads what stands out."""

import pytest
import torch

from pagoda.formats.int4 import INT4_PLAIN
from pagoda.formats.rotated import INT4, INT4_ROTATED, hadamard
from pagoda.layouts.attention import AttentionLayout

KEY, VALUE = AttentionLayout(num_kv_heads=2, key_width=64, value_width=64).planes


def rows(seed=0):
    return torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 2, 8, 64])
def test_the_transform_is_orthonormal_and_its_own_inverse(channels):
    matrix = hadamard(torch.eye(64), channels)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(64))
    torch.testing.assert_close(hadamard(hadamard(rows(), channels), channels), rows())


def test_runs_are_transformed_apart():
    matrix = hadamard(torch.eye(64), 16)
    assert torch.equal(matrix != 0, torch.block_diag(*[torch.ones(16, 16)] * 4).bool())


def error(format, plane, values):
    decoded = format.decode(format.encode(values, plane), plane)
    return (decoded - values).square().mean().sqrt().item()


def test_a_channel_that_stands_out_costs_the_others_less():
    """One channel 50 times as large takes the codes of its group; spread, it adds 50 / 8 to every channel."""
    values = rows()
    values[..., 7] *= 50
    assert error(INT4, KEY, values) < error(INT4_PLAIN, KEY, values)
    assert error(INT4_ROTATED, VALUE, values) < error(INT4_PLAIN, VALUE, values) / 1.5


def test_int4_rotates_keys_only():
    assert torch.equal(INT4.encode(rows(), VALUE), INT4_PLAIN.encode(rows(), VALUE))
    assert torch.equal(INT4.encode(rows(), KEY), INT4_ROTATED.encode(rows(), KEY))
    assert not torch.equal(INT4.encode(rows(), KEY), INT4_PLAIN.encode(rows(), KEY))
