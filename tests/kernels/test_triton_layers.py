"""The Triton kernels of layers, interpreted, against plain torch: gates and rotations to the bit."""

import pytest
import torch

from kernels.interpreted import TritonLayers
from pagoda.kernels.reference_layers import ReferenceLayers

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 3, 64), (5, 100), (1, 2, 3, 48)])
def test_norms_are_those_of_torch(shape, dtype):
    rows, weight = numbers(*shape, dtype=dtype), numbers(shape[-1], dtype=dtype, seed=1)
    expected = ReferenceLayers().rms_norm(rows, weight, 1e-6)
    actual = TritonLayers().rms_norm(rows, weight, 1e-6)
    # Sums of so many squares in another order, under a root; then what is rounded may move by one unit, twice.
    share = (shape[-1] / 2 + 4) * torch.finfo(torch.float32).eps + 2 * torch.finfo(dtype).eps
    bound = share * expected.abs().float()
    assert actual.dtype is dtype
    assert ((actual.float() - expected.float()).abs() <= bound).all()


def test_norms_take_rows_that_lie_apart():
    rows = numbers(4, 3, 32, dtype=torch.float32)[:, 1]
    weight = numbers(32, dtype=torch.float32, seed=1)
    expected = ReferenceLayers().rms_norm(rows, weight, 1e-6)
    torch.testing.assert_close(TritonLayers().rms_norm(rows, weight, 1e-6), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_are_those_of_torch(dtype):
    gate, up = numbers(3, 700, dtype=dtype) * 8, numbers(3, 700, dtype=dtype, seed=1)
    expected = ReferenceLayers().gated_silu(gate, up)
    actual = TritonLayers().gated_silu(gate, up)
    # Exponentials differ in their last place, and what is rounded after them moves by one unit, twice.
    share = 4 * torch.finfo(torch.float32).eps + 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual, expected, rtol=share, atol=torch.finfo(dtype).tiny)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 80])
def test_rotations_are_those_of_torch_to_the_bit(width, dtype):
    rows = numbers(1, 5, 6, width, dtype=dtype).transpose(1, 2)  # [1, heads, rows, width], the heads of a row together
    cosines, sines = numbers(1, 5, width, dtype=dtype, seed=1), numbers(1, 5, width, dtype=dtype, seed=2)
    layers = TritonLayers()
    assert layers.takes_rotation(rows, cosines)
    assert torch.equal(layers.rotate(rows, cosines, sines), ReferenceLayers().rotate(rows, cosines, sines))


def test_what_kernels_do_not_take_is_left_to_torch():
    wide = numbers(2, 20000, dtype=torch.float32)
    weight = numbers(20000, dtype=torch.float32, seed=1)
    assert torch.equal(TritonLayers().rms_norm(wide, weight, 1e-6), ReferenceLayers().rms_norm(wide, weight, 1e-6))
    assert not TritonLayers().takes_rotation(wide[None, None, :, :63], wide[None, :, :63])
