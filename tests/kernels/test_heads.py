"""Products of each head by itself, at every instruction set: close to exact, and the same bits in every batch."""

import pytest
import torch

from kernels.rounding import ROUNDING_UNIT
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import instruction_sets
from pagoda.kernels.reference import ReferenceKernels

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEADS = 3

every_isa = pytest.mark.parametrize("isa", instruction_sets())


def up_projections(depth, columns, dtype):
    """Both halves of one weight, as latent attention has them: one by rows, one by columns."""
    weight = torch.randn(HEADS, depth + columns, columns).to(dtype)
    into, out_of = weight.split([depth, columns], dim=1)
    return into, out_of.transpose(1, 2)


def rows_of(count, width, dtype):
    """A part of wider rows, heads first."""
    return torch.randn(HEADS, count, width + 8).to(dtype).transpose(0, 1)[..., :width]


@every_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("depth", "columns"), [(128, 512), (32, 1024), (24, 40)])
@pytest.mark.parametrize("count", [1, 8, 9])
def test_close_to_exact(isa, dtype, depth, columns, count):
    for weight in up_projections(depth, columns, dtype):
        rows = rows_of(count, weight.shape[1], dtype)
        out = NativeKernels(isa).multiply_heads(rows, weight)
        exact = torch.einsum("rhd,hdc->rhc", rows.double(), weight.double())
        magnitude = torch.einsum("rhd,hdc->rhc", rows.double().abs(), weight.double().abs())
        # A sum of so many rounded products in some order, and the rounding of the result.
        limit = weight.shape[1] * ROUNDING_UNIT[torch.float32] * magnitude + ROUNDING_UNIT[dtype] * exact.abs()
        assert ((out.double() - exact).abs() <= limit + 2.0**-24).all()
        reference = ReferenceKernels().multiply_heads(rows, weight)
        assert out.dtype is reference.dtype
        assert out.shape == reference.shape


@every_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_in_every_batch(isa, dtype):
    kernels = NativeKernels(isa)
    for weight in up_projections(128, 512, dtype):
        rows = rows_of(8, weight.shape[1], dtype)
        together = kernels.multiply_heads(rows, weight)
        assert all(torch.equal(kernels.multiply_heads(rows[i : i + 1], weight)[0], together[i]) for i in range(8))
