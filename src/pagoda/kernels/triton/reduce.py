"""Adds up what attend.py left of the splits of each row, in a fixed order, and turns results back where kept turned."""

import triton
import triton.language as tl

from pagoda.kernels.triton.attend import are_in_one, finished, num_sink_splits, splits_of
from pagoda.kernels.triton.hadamard import hadamard
from pagoda.kernels.triton.search import sequence_of
from pagoda.kernels.triton.tables import num_tokens_of, places_of, position_of, split_starts_of


@triton.jit(do_not_specialize=["layer", "num_sequences", "few_rows", "first_row", "num_splits"])
def reduce_splits(
    out, partial, statistics, tables, extras, layer, num_sequences, few_rows, first_row, num_splits,
    block_splits: tl.constexpr, is_few: tl.constexpr, shape: tl.constexpr
):  # fmt: skip
    """One row and head of it: those of sequences of up to `few_rows` rows if `is_few`, else those of the others.

    Nothing is left to do for rows that one split has all of, unless they are to be turned back.
    """
    row = first_row + tl.program_id(0)
    head = tl.program_id(1)
    sequence = sequence_of(tables[2], row, num_sequences, 1, 1, 0)
    start = tl.load(tables[2] + sequence)
    num_rows = tl.load(tables[2] + sequence + 1) - start
    length = num_tokens_of(tables, layer, sequence, head // shape.group, shape)
    places = places_of(tables, sequence, start, shape)
    position = position_of(places, row - start, length, num_rows, shape)
    first, last = splits_of(position, places, length, shape)
    is_left = (length > 0) & ((are_in_one(first, last, shape) == 0) | shape.turns_results)
    if (row < start + num_rows) & ((num_rows <= few_rows) == is_few) & is_left:
        if is_few:
            place = tl.load(split_starts_of(tables, shape) + sequence) // shape.split_pages + sequence
            base = (place.to(tl.int64) * few_rows + row - start) * shape.heads + head
            stride = few_rows * shape.heads
        else:
            base = (tl.program_id(0).to(tl.int64) * shape.heads + head) * num_splits
            stride = 1
        channel = tl.arange(0, shape.reduced_width)
        exists = channel < shape.value_width
        largest = tl.full([1], float("-inf"), tl.float32)
        total = tl.full([1], 0.0, tl.float32)
        sums = tl.full([1, shape.reduced_width], 0.0, tl.float32)
        first_block = 0 if shape.rule.sink_tokens > 0 else first // block_splits
        for block in tl.range(first_block, last // block_splits + 1):
            split = block * block_splits + tl.arange(0, block_splits)
            is_one = ((split >= first) | (split < num_sink_splits(shape))) & (split <= last)
            slots = base + split.to(tl.int64) * stride
            maxima = tl.load(statistics + slots * 2, mask=is_one, other=float("-inf"))
            totals = tl.load(statistics + slots * 2 + 1, mask=is_one, other=0.0)
            rows = tl.load(
                partial + slots[:, None] * shape.value_width + channel[None, :],
                mask=is_one[:, None] & exists[None, :],
                other=0.0,
            )
            highest = tl.maximum(largest, tl.max(maxima, axis=0))
            weights = tl.exp2(maxima - highest)
            fade = tl.exp2(largest - highest)
            total = total * fade + tl.sum(totals * weights, axis=0)
            sums = sums * fade[:, None] + tl.sum(rows * weights[:, None], axis=0)[None, :]
            largest = highest
        has_sinks: tl.constexpr = shape.rule.has_sinks
        heads = head + tl.arange(0, 1)
        factor, share = finished(largest, total, extras[0], heads, heads >= 0, has_sinks)
        sums = _turned_back(sums * factor[:, None], share, head // shape.group, channel, extras, shape)
        numbers = (row.to(tl.int64) * shape.heads + head) * shape.value_width + channel
        tl.store(out + numbers[None, :], sums, mask=exists[None, :])


@triton.jit
def _turned_back(sums, share, kv_head, channel, extras, shape: tl.constexpr):
    """Values from what is kept of them."""
    plane: tl.constexpr = shape.values
    if plane.rotated_channels > 1:
        sums = hadamard(sums, plane)
    if shape.has_latents and shape.has_scales:
        scales = tl.load(extras[6] + kv_head * shape.keys.width + channel, mask=channel < shape.value_width, other=0.0)
        sums = sums * scales[None, :]
        for pair in tl.range(shape.num_pairs):
            place = kv_head * shape.num_pairs + pair
            for side in tl.static_range(2):
                own = tl.load(extras[4] + place * 3 + side) == channel
                base = tl.load(extras[7] + place * 2 + side)
                sums += tl.where(own[None, :], base * share[:, None], 0.0)
    return sums
