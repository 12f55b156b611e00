"""Norms, gates and rotations, each rounded where plain torch rounds (kernels/reference_layers.py)."""

import triton
import triton.language as tl


@triton.jit
def norm_row(rows, weight, out, row_stride, width, epsilon, block: tl.constexpr):
    """A program takes a row: its root-mean-square norm in fp32, rounded, times the weight."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, block)
    exists = channel < width
    numbers = tl.load(rows + row * row_stride + channel, mask=exists, other=0.0)
    wide = numbers.to(tl.float32)
    normed = (wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / width + epsilon)).to(numbers.dtype)
    factors = tl.load(weight + channel, mask=exists, other=0.0)
    product = (factors.to(tl.float32) * normed.to(tl.float32)).to(numbers.dtype)
    tl.store(out + row * width + channel, product, mask=exists)


@triton.jit
def gate_block(gate, up, out, count, block: tl.constexpr):
    """silu(gate) * up, number by number."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    exists = place < count
    numbers = tl.load(gate + place, mask=exists, other=0.0)
    wide = numbers.to(tl.float32)
    opened = tl.div_rn(wide, 1.0 + tl.exp(-wide)).to(numbers.dtype)
    factors = tl.load(up + place, mask=exists, other=0.0)
    tl.store(out + place, (opened.to(tl.float32) * factors.to(tl.float32)).to(numbers.dtype), mask=exists)


@triton.jit
def rotate_row(
    rows, cosines, sines, out, head_stride, row_stride, num_heads, half, heads: tl.constexpr, width: tl.constexpr
):
    """A program takes a row: all of its heads, whose first halves are turned with the second."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, heads)[:, None]
    channel = tl.arange(0, width)[None, :]
    exists = (head < num_heads) & (channel < half)
    place = rows + row * row_stride + head.to(tl.int64) * head_stride + channel
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
