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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 3, 64), (5, 100)])
def test_sums_and_their_norms_are_those_of_two_kernels_to_the_bit(shape, dtype):
    wide, added = numbers(*shape[:-1], 2 * shape[-1], dtype=dtype), numbers(*shape, dtype=dtype, seed=2)
    residual, weight = wide[..., : shape[-1]], numbers(shape[-1], dtype=dtype, seed=1)
    total, normed = TritonLayers().add_norm(residual, added, weight, 1e-6)
    assert torch.equal(total, residual + added)
    assert torch.equal(normed, TritonLayers().rms_norm(total, weight, 1e-6))
    assert total.is_contiguous() and normed.is_contiguous()


def test_sums_of_other_types_are_left_to_torch():
    residual, added = numbers(2, 64, dtype=torch.float32), numbers(2, 64, dtype=torch.bfloat16, seed=1)
    weight = numbers(64, dtype=torch.float32, seed=2)
    total, normed = TritonLayers().add_norm(residual, added, weight, 1e-6)
    assert torch.equal(total, residual + added)
    assert torch.equal(normed, TritonLayers().rms_norm(total, weight, 1e-6))


def test_norms_take_rows_that_lie_apart():
    rows = numbers(4, 3, 32, dtype=torch.float32)[:, 1]
    weight = numbers(32, dtype=torch.float32, seed=1)
    expected = ReferenceLayers().rms_norm(rows, weight, 1e-6)
    torch.testing.assert_close(TritonLayers().rms_norm(rows, weight, 1e-6), expected)


def test_norms_of_heads_take_parts_of_wider_rows_as_they_are():
    heads = numbers(1, 5, 200, dtype=torch.float32)[..., 32:128].view(1, 5, 3, 32)
    weight = numbers(32, dtype=torch.float32, seed=1)
    expected = ReferenceLayers().rms_norm(heads, weight, 1e-6)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("contiguous", "reshape", "clone"):
            patch.setattr(torch.Tensor, name, None)
        actual = TritonLayers().rms_norm(heads, weight, 1e-6)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [700, 1500])  # one block and more
def test_gates_are_those_of_torch(width, dtype):
    # Parts of wider rows, as layers give them that are computed together.
    both = numbers(1, 3, 2 * width, dtype=dtype) * 8
    gate, up = both.split(width, dim=-1)
    expected = ReferenceLayers().gated_silu(gate, up)
    actual = TritonLayers().gated_silu(gate, up)
    assert actual.is_contiguous()
    # Exponentials differ in their last place, and what is rounded after them moves by one unit, twice.
    share = 4 * torch.finfo(torch.float32).eps + 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual, expected, rtol=share, atol=torch.finfo(dtype).tiny)


def test_gates_take_rows_that_lie_apart_in_any_way():
    gate = numbers(48, 6, dtype=torch.float32).T  # numbers of a row apart
    up = numbers(2, 3, 2, 48, dtype=torch.float32)[:, :, 1]
    expected = ReferenceLayers().gated_silu(gate.reshape(2, 3, 48), up)
    torch.testing.assert_close(TritonLayers().gated_silu(gate.reshape(2, 3, 48), up), expected)
    torch.testing.assert_close(TritonLayers().gated_silu(gate, up.reshape(6, 48)), expected.reshape(6, 48))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 80])
def test_rotations_are_those_of_torch_to_the_bit(width, dtype):
    # [1, heads, rows, width], parts of wider rows that have the heads of a row together, or every other head.
    both = numbers(1, 5, 12 * width, dtype=dtype)
    query, key = (part.view(1, 5, 6, width).transpose(1, 2) for part in both.chunk(2, dim=-1))
    key = key[:, ::2]
    cosines, sines = numbers(1, 5, width, dtype=dtype, seed=1), numbers(1, 5, width, dtype=dtype, seed=2)
    layers, plain = TritonLayers(), ReferenceLayers()
    assert layers.takes_rotation(query, cosines) and layers.takes_rotation(key, cosines)
    expected = plain.rotate(query, cosines, sines), plain.rotate(key, cosines, sines)
    assert all(map(torch.equal, layers.rotate_both(query, key, cosines, sines), expected))
    assert all(map(torch.equal, plain.rotate_both(query, key, cosines, sines), expected))
    assert torch.equal(layers.rotate(key, cosines, sines), expected[1])
    assert [each.shape[2] for each in layers.rotate_both(query[:, :, :0], key[:, :, :0], cosines, sines)] == [0, 0]


def test_queries_and_keys_are_rotated_in_one_launch(monkeypatch):
    launches = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_, **__: launches.append(grid)

    monkeypatch.setattr("pagoda.kernels.triton.layers.rotate_rows", Kernel())
    rows, angles = numbers(1, 4, 3, 16, dtype=torch.float32), numbers(1, 3, 16, dtype=torch.float32)
    TritonLayers().rotate_both(rows, rows[:, :2], angles, angles)
    assert launches == [(3, 2)]


def test_what_kernels_do_not_take_is_left_to_torch():
    wide = numbers(2, 20000, dtype=torch.float32)
    weight = numbers(20000, dtype=torch.float32, seed=1)
    assert torch.equal(TritonLayers().rms_norm(wide, weight, 1e-6), ReferenceLayers().rms_norm(wide, weight, 1e-6))
    assert not TritonLayers().takes_rotation(wide[None, None, :, :63], wide[None, :, :63])
