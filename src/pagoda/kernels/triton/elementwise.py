"""Norms, gates and rotations, each rounded where plain torch rounds (kernels/reference_layers.py)."""

import triton
import triton.language as tl


@triton.jit
def norm_row(rows, weight, out, strides, num_inner, width, epsilon, block: tl.constexpr):
    """A program takes a row of [outer, inner, width]: its root-mean-square norm in fp32, rounded, times the weight.

    `out` is contiguous.
    """
    row = tl.program_id(0).to(tl.int64)
    place = row // num_inner * strides[0] + row % num_inner * strides[1]
    channel = tl.arange(0, block)
    exists = channel < width
    numbers = tl.load(rows + place + channel, mask=exists, other=0.0)
    tl.store(out + row * width + channel, _normed(numbers, weight, channel, exists, width, epsilon), mask=exists)


@triton.jit
def add_norm_row(rows, added, weight, total, out, row_stride, added_stride, width, epsilon, block: tl.constexpr):
    """A program takes a row: what is added to it, rounded, and the norm of that. `total` and `out` are contiguous."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, block)
    exists = channel < width
    first = tl.load(rows + row * row_stride + channel, mask=exists, other=0.0)
    second = tl.load(added + row * added_stride + channel, mask=exists, other=0.0)
    numbers = (first.to(tl.float32) + second.to(tl.float32)).to(first.dtype)
    tl.store(total + row * width + channel, numbers, mask=exists)
    tl.store(out + row * width + channel, _normed(numbers, weight, channel, exists, width, epsilon), mask=exists)


@triton.jit
def _normed(numbers, weight, channel, exists, width, epsilon):
    wide = numbers.to(tl.float32)
    normed = (wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / width + epsilon)).to(numbers.dtype)
    factors = tl.load(weight + channel, mask=exists, other=0.0)
    return (factors.to(tl.float32) * normed.to(tl.float32)).to(numbers.dtype)


@triton.jit
def gate_block(gate, up, out, gate_stride, up_stride, width, block: tl.constexpr):
    """A program takes a part of a row: silu(gate) * up, number by number. `out` is contiguous."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    exists = channel < width
    numbers = tl.load(gate + row * gate_stride + channel, mask=exists, other=0.0)
    wide = numbers.to(tl.float32)
    opened = tl.div_rn(wide, 1.0 + tl.exp(-wide)).to(numbers.dtype)
    factors = tl.load(up + row * up_stride + channel, mask=exists, other=0.0)
    product = (opened.to(tl.float32) * factors.to(tl.float32)).to(numbers.dtype)
    tl.store(out + row * width + channel, product, mask=exists)


@triton.jit
def rotate_rows(
    queries,
    keys,
    cosines,
    sines,
    query_out,
    key_out,
    query_strides,
    key_strides,
    query_heads,
    key_heads,
    half,
    query_block: tl.constexpr,
    key_block: tl.constexpr,
    width: tl.constexpr,
):
    """A program takes all heads of a row of queries or keys, whose first halves are turned with the second."""
    if tl.program_id(1) == 0:
        _rotate_row(queries, cosines, sines, query_out, query_strides, query_heads, half, query_block, width)
    else:
        _rotate_row(keys, cosines, sines, key_out, key_strides, key_heads, half, key_block, width)


@triton.jit
def _rotate_row(rows, cosines, sines, out, strides, num_heads, half, heads: tl.constexpr, width: tl.constexpr):
    """Of rows with `strides` of heads and rows; `out` [rows, heads, 2 * half] is contiguous."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, heads)[:, None]
    channel = tl.arange(0, width)[None, :]
    exists = (head < num_heads) & (channel < half)
    place = rows + row * strides[1] + head.to(tl.int64) * strides[0] + channel
    first = tl.load(place, mask=exists, other=0.0)
    second = tl.load(place + half, mask=exists, other=0.0)
    angle = row * 2 * half + channel
    known = channel < half
    target = out + (row * num_heads + head) * 2 * half + channel
    cosine = tl.load(cosines + angle, mask=known, other=0.0)
    sine = tl.load(sines + angle, mask=known, other=0.0)
    tl.store(target, _turned(first, cosine, -second, sine), mask=exists)
    cosine = tl.load(cosines + angle + half, mask=known, other=0.0)
    sine = tl.load(sines + angle + half, mask=known, other=0.0)
    tl.store(target + half, _turned(second, cosine, first, sine), mask=exists)


@triton.jit
def _turned(own, cosine, other, sine):
    """own * cosine + other * sine, rounded after each product and after the sum."""
    kept = (own.to(tl.float32) * cosine.to(tl.float32)).to(own.dtype)
    crossed = (other.to(tl.float32) * sine.to(tl.float32)).to(own.dtype)
    return (kept.to(tl.float32) + crossed.to(tl.float32)).to(own.dtype)
