"""Norms, gates and rotations against the plain reference, on every instruction set and in every type."""

from __future__ import annotations

import pytest
import torch

from pagoda.errors import ConfigError
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import instruction_sets
from pagoda.kernels.reference import ReferenceKernels

EPSILON = 1e-6
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# One vector or less, not a multiple of one, more than a piece of 256, and rows enough for two threads.
SHAPES = [(1, 3), (5, 64), (3, 257), (2, 896), (64, 1000)]

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_shape = pytest.mark.parametrize("shape", SHAPES)


@pytest.fixture(params=instruction_sets())
def kernels(request: pytest.FixtureRequest, two_threads: None) -> NativeKernels:
    return NativeKernels(isa=request.param)


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(got: torch.Tensor, expected: torch.Tensor, fp32_error: float) -> None:
    """Equal but for `fp32_error`, relative, and what it may do to two roundings: one unit in the last place each."""
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    tolerance = fp32_error if got.dtype is torch.float32 else 2 * torch.finfo(got.dtype).eps
    assert ((got.double() - expected.double()).abs() <= tolerance * expected.double().abs() + 1e-30).all()


@every_dtype
@every_shape
def test_rms_norm(kernels: NativeKernels, shape: tuple[int, int], dtype: torch.dtype) -> None:
    input, weight = numbers(*shape, dtype=dtype), numbers(shape[1], dtype=dtype, seed=1)
    expected = ReferenceKernels().rms_norm(input, weight, EPSILON)
    # A sum of n squares in another order is within n * 2^-24 (Higham 4.2), its root half of that; five more roundings.
    assert_close(kernels.rms_norm(input, weight, EPSILON), expected, (shape[1] / 2 + 5) * 2.0**-24)


@every_dtype
def test_a_row_is_normed_the_same_in_every_batch(kernels: NativeKernels, dtype: torch.dtype) -> None:
    input, weight = numbers(64, 1000, dtype=dtype), numbers(1000, dtype=dtype, seed=1)
    together = kernels.rms_norm(input, weight, EPSILON)
    assert torch.equal(kernels.rms_norm(input[3:4], weight, EPSILON), together[3:4])


@every_dtype
@every_shape
def test_gated_silu(kernels: NativeKernels, shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate, up = numbers(*shape, dtype=dtype) * 5, numbers(*shape, dtype=dtype, seed=1)
    # The exponential is good to 2 units, torch's to 1; a sum, a division and two products round once each. Ours is a
    # power of two, whose exponent is rounded: an error that grows with the argument.
    error = (16 + float(gate.abs().max())) * 2.0**-24
    assert_close(kernels.gated_silu(gate, up), ReferenceKernels().gated_silu(gate, up), error)


@every_dtype
def test_gates_far_out_neither_overflow_nor_hide_nan(kernels: NativeKernels, dtype: torch.dtype) -> None:
    gate = torch.tensor([-200.0, 200.0, 0.0, float("inf"), float("nan")], dtype=dtype)
    out = kernels.gated_silu(gate, torch.ones_like(gate))
    assert out[:4].tolist() == [0.0, 200.0, 0.0, float("inf")]
    assert out[4].isnan()


@every_dtype
@every_shape
def test_sums_are_torchs(kernels: NativeKernels, shape: tuple[int, int], dtype: torch.dtype) -> None:
    first, second = numbers(*shape, dtype=dtype), numbers(*shape, dtype=dtype, seed=1)
    assert kernels.takes_sum(first, second)
    out = torch.empty_like(first)
    kernels.add(first, second, out)
    assert torch.equal(out, first + second)


@every_dtype
@every_shape
def test_wider_numbers_are_torchs(kernels: NativeKernels, shape: tuple[int, int], dtype: torch.dtype) -> None:
    input = numbers(*shape, dtype=dtype)
    input[0, 0] = torch.inf
    out = torch.full(shape, torch.nan)
    assert kernels.takes_widening(input, out)
    kernels.widen(input, out)
    assert torch.equal(out, input.float())


def test_conversions_that_are_left_to_torch(kernels: NativeKernels) -> None:
    narrow, wide = torch.zeros(4, 4, dtype=torch.bfloat16), torch.zeros(4, 4)
    for input, out in ((narrow, narrow), (narrow, wide[:2]), (narrow.T, wide), (wide.long(), wide)):
        assert not kernels.takes_widening(input, out)


def test_sums_that_are_left_to_torch(kernels: NativeKernels) -> None:
    first = torch.zeros(4, 6)
    for second in (torch.zeros(6), torch.zeros(4, 6).double(), torch.zeros(6, 4).T):
        assert not kernels.takes_sum(first, second)


@every_dtype
@pytest.mark.parametrize(("heads", "rows", "width"), [(1, 1, 2), (3, 5, 10), (14, 200, 64), (2, 3, 512)])
def test_rotation(kernels: NativeKernels, heads: int, rows: int, width: int, dtype: torch.dtype) -> None:
    # As models have them: heads of a row side by side, and other numbers behind them.
    packed = numbers(1, rows, heads + 2, width, dtype=dtype)
    input = packed[:, :, :heads].transpose(1, 2)
    cosines, sines = (numbers(1, rows, width, dtype=dtype, seed=seed).clamp(-1, 1) for seed in (1, 2))
    assert kernels.takes_rotation(input, cosines)
    got, expected = kernels.rotate(input, cosines, sines), ReferenceKernels().rotate(input, cosines, sines)
    # The same three roundings; a compiler may fuse a product with the sum, which spares one.
    magnitude = input.double().abs().amax() * 2
    assert (got.double() - expected.double()).abs().max() <= magnitude * torch.finfo(dtype).eps
    assert got.shape == expected.shape
    assert got.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(
    ("input", "cosines"),
    [
        (torch.zeros(2, 1, 3, 8), torch.zeros(1, 3, 8)),
        (torch.zeros(1, 1, 3, 8), torch.zeros(1, 3, 4)),
        (torch.zeros(1, 1, 3, 8), torch.zeros(1, 3, 8).bfloat16()),
        (torch.zeros(1, 1, 3, 514), torch.zeros(1, 3, 514)),
        (torch.zeros(1, 1, 3, 7), torch.zeros(1, 3, 7)),
        (torch.zeros(1, 1, 8, 3).transpose(2, 3), torch.zeros(1, 3, 8)),
    ],
    ids=["two batches", "part of a head", "other type", "too wide", "odd", "channels apart"],
)
def test_rotations_it_cannot_do_are_left_alone(
    kernels: NativeKernels, input: torch.Tensor, cosines: torch.Tensor
) -> None:
    assert not kernels.takes_rotation(input, cosines)


def test_what_does_not_fit_together_is_refused(kernels: NativeKernels) -> None:
    with pytest.raises(ConfigError, match="norm of"):
        kernels.rms_norm(torch.zeros(2, 8), torch.zeros(4), EPSILON)
    with pytest.raises(ConfigError, match="gate of"):
        kernels.gated_silu(torch.zeros(2, 8), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="fp32, fp16 or bf16"):
        kernels.gated_silu(torch.zeros(8).double(), torch.zeros(8).double())
