"""Triton's interpreter, for tests without a GPU; tests that import this first are skipped where there is no Triton.

It is mended where it computes something else than GPUs do: bf16 is cut off instead of rounded and multiplied as the
integers that its bits are, what is fused is rounded twice, and loops have no bounds with NumPy 2.4. Instructions of
NVIDIA's are computed by `ptx_machine.py`. What compilers are told of addresses is looked at: on a card, words that do
not lie where they are said to end the process.
"""

from functools import partial, partialmethod

import numpy as np
import pytest
import torch

pytest.importorskip("triton")


import triton.language as tl
from triton.runtime import interpreter

from kernels import ptx_machine, quick_interpreter  # noqa: F401 - it hastens the interpreter

# Read when a kernel is defined, as `conftest.py` has done for Triton's own. Other tests find no GPU.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    from pagoda.kernels.triton import tiles
    from pagoda.kernels.triton.attention import TritonAttention
    from pagoda.kernels.triton.graphs import GraphRecorder
    from pagoda.kernels.triton.layers import TritonLayers
    from pagoda.kernels.triton.shapes import Tile

__all__ = ["SMALL", "GraphRecorder", "TritonAttention", "TritonLayers"]

TORCH_DTYPES = {
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
}
BITS = {2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32)}


def _patch_tensor(original, tensor, scope):
    original(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _set_attr(handle, name, values, original):
    original(handle, name, values)
    if name == "tt.contiguity":
        _check_runs(handle.data, values, handle.attr.get("tt.divisibility", [1] * len(values)))


def _check_runs(numbers, lengths, factors):
    """Along each axis so many numbers follow one another, the first of them a multiple of its factor."""
    for axis, (length, factor) in enumerate(zip(lengths, factors, strict=True)):
        if 1 < length <= numbers.shape[axis]:
            along = np.moveaxis(numbers, axis, -1)
            runs = along.reshape(*along.shape[:-1], -1, length)
            assert (np.diff(runs) == 1).all(), f"not in runs of {length}"
            assert (runs[..., 0] % factor == 0).all(), f"runs do not begin at multiples of {factor}"


def _convert_float(data, source, target, rounding):
    """Numbers of type `source` as the bits of `target`, rounded to nearest, ties to even."""
    source, target = TORCH_DTYPES[source], TORCH_DTYPES[target]
    bits = np.ascontiguousarray(data).view(BITS[source.itemsize][1]).view(f"i{source.itemsize}")
    numbers = torch.from_numpy(bits.copy()).view(source).to(target)
    return numbers.view(BITS[target.itemsize][0]).numpy().view(BITS[target.itemsize][1])


def _widened(handle):
    if handle.dtype.scalar is tl.bfloat16:
        return _convert_float(handle.data, tl.bfloat16, tl.float32, None).view(np.float32).astype(np.float64)
    return handle.data.astype(np.float64)


def _dot(_builder, left, right, added, _precision, _most_inexact):
    """In fp64: sums of fp32 depend on where in its tile a row lies."""
    numbers = np.matmul(_widened(left), _widened(right)) + added.data
    return interpreter.TensorHandle(numbers.astype(added.data.dtype), added.dtype.scalar)


def _bf16(_builder, number):
    bits = _convert_float(np.array([number], dtype=np.float32), tl.float32, tl.bfloat16, None)
    return interpreter.TensorHandle(bits, tl.bfloat16)


def _on_bf16(original, operator):
    """`operator` on numbers, where NumPy would take their bits."""

    def compute(builder, left, right):
        if left.dtype.scalar is not tl.bfloat16:
            return original(builder, left, right)
        numbers = operator(_widened(left), _widened(right)).astype(np.float32)
        return interpreter.TensorHandle(_convert_float(numbers, tl.float32, tl.bfloat16, None), tl.bfloat16)

    return compute


def _fused(_builder, left, right, added):
    """Rounded once: products of fp32 are exact in fp64."""
    numbers = left.data.astype(np.float64) * right.data + added.data
    return interpreter.TensorHandle(numbers.astype(left.data.dtype), left.dtype.scalar)


class _Results(list):
    get_result = list.__getitem__


def _inline_asm(_builder, text, constraints, values, dtypes, _is_pure, pack):
    """Registers hold two numbers of a block, whichever these are."""
    (words,) = values
    halves = np.ascontiguousarray(words.data).view(np.uint32).reshape(-1, pack)
    found = ptx_machine.run(text, constraints, [halves[:, index] for index in range(pack)])
    numbers = [each.view(np.uint16).view(np.float16).reshape(words.data.shape) for each in found]
    return _Results(interpreter.TensorHandle(each, tl.float16) for each in numbers)


interpreter._patch_lang_tensor = partial(_patch_tensor, interpreter._patch_lang_tensor)
interpreter.TensorHandle.set_attr = partialmethod(_set_attr, original=interpreter.TensorHandle.set_attr)
interpreter._convert_float = _convert_float
interpreter.InterpreterBuilder.create_dot = _dot
interpreter.InterpreterBuilder.create_fma = _fused
interpreter.InterpreterBuilder.create_inline_asm = _inline_asm
interpreter.InterpreterBuilder.get_bf16 = _bf16
interpreter.InterpreterBuilder.create_fsub = _on_bf16(interpreter.InterpreterBuilder.create_fsub, np.subtract)
interpreter.InterpreterBuilder.create_fmul = _on_bf16(interpreter.InterpreterBuilder.create_fmul, np.multiply)

_TILE = Tile(rows=16, tokens=16, num_warps=4, num_stages=2)
# So small that small cases have several tiles, splits and parts.
SMALL = tiles.Tiles(
    few=_TILE,
    few_codes=_TILE,
    few_latents=_TILE,
    many=Tile(rows=32, tokens=32, num_warps=4, num_stages=2),
    many_codes=Tile(rows=32, tokens=16, num_warps=4, num_stages=2),
    many_latents=Tile(rows=32, tokens=16, num_warps=4, num_stages=2),
    many_biased=Tile(rows=32, tokens=16, num_warps=4, num_stages=2),
    exact=_TILE,
    head_split_tokens=16,
    few_split_tokens=(32, 32),
    many_split_tokens=64,
    partial_nbytes=20_000,
    programs_per_processor=2,
    shared_nbytes=1 << 30,
)
