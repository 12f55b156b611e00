"""Queries as they meet what is kept of keys: times the scales of channels, transformed, their lifts beside them."""

import triton
import triton.language as tl

from pagoda.kernels.triton.hadamard import hadamard


@triton.jit(do_not_specialize=["num_rows"])
def prepare_queries(query, turned, lifts, extras, query_strides, num_rows, block: tl.constexpr, shape: tl.constexpr):
    """`block` rows and heads a program: `turned` [rows, heads, key width], `lifts` [rows, heads, 32] in fp32.

    A lift times the cosine (the first 16), or the sine, of a page's turn is what a pair of channels adds to scores.
    """
    item = tl.program_id(0) * block + tl.arange(0, block)
    is_valid = item < num_rows * shape.heads
    head = item % shape.heads
    own = query + (item // shape.heads).to(tl.int64) * query_strides[0] + head * query_strides[1]
    channel = tl.arange(0, shape.keys.row_width)
    mask = is_valid[:, None] & (channel < shape.keys.width)[None, :]
    rows = tl.load(own[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    kv_head = head // shape.group
    if shape.has_scales:
        rows *= tl.load(extras[6] + kv_head[:, None] * shape.keys.width + channel[None, :], mask=mask, other=0.0)
    plane: tl.constexpr = shape.keys
    if plane.rotated_channels > 1:
        rows = hadamard(rows, plane)
    places = item.to(tl.int64)[:, None]
    tl.store(turned + places * shape.keys.width + channel[None, :], rows, mask=mask)
    if shape.has_constants:
        pair = tl.arange(0, 16)
        exists = is_valid[:, None] & (pair < shape.num_pairs)[None, :]
        place = kv_head[:, None] * shape.num_pairs + pair[None, :]
        first = tl.load(own[:, None] + tl.load(extras[4] + place * 3, mask=exists, other=0), mask=exists, other=0.0)
        second = tl.load(
            own[:, None] + tl.load(extras[4] + place * 3 + 1, mask=exists, other=0), mask=exists, other=0.0
        )
        first = first.to(tl.float32)
        second = second.to(tl.float32)
        base = tl.load(extras[7] + place * 2, mask=exists, other=0.0)
        other = tl.load(extras[7] + place * 2 + 1, mask=exists, other=0.0)
        tl.store(lifts + places * 32 + pair[None, :], first * base + second * other, mask=is_valid[:, None])
        tl.store(lifts + places * 32 + 16 + pair[None, :], second * base - first * other, mask=is_valid[:, None])
