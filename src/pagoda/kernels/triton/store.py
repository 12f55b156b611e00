"""Writes new keys and values into pages, encoded as formats/*.py does, byte for byte.

A program takes some rows of one head of one plane. Nothing may be fused here: the reference rounds every step.
"""

import triton
import triton.language as tl

from pagoda.kernels.triton.hadamard import hadamard
from pagoda.kernels.triton.search import sequence_of

NAN_BITS = tl.constexpr(0x7FC00000)
INFINITY_BITS = tl.constexpr(0x7F800000)
SMALLEST_SCALE_BITS = tl.constexpr(0x00800000)
LARGEST_CODE = tl.constexpr(15.0)
LARGEST_STEP = tl.constexpr(16.0)
LARGEST_NUMBER = tl.constexpr(119.0)
# Adding and taking off 1.5 * 2**23 rounds to whole numbers, ties to even.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit(do_not_specialize=["num_rows", "num_sequences"])
def store_rows(
    rows, pages, finite, is_made, tables, extras, strides, num_rows, num_sequences, block: tl.constexpr,
    has_finite: tl.constexpr, has_summaries: tl.constexpr, has_slots: tl.constexpr, has_scales: tl.constexpr,
    num_pairs: tl.constexpr, turn_pages: tl.constexpr, page_nbytes: tl.constexpr,
    key_plane: tl.constexpr, value_plane: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * block + tl.arange(0, block)
    head = tl.program_id(1)
    sequence = sequence_of(tables[2], row, num_sequences, 1, 1, 0)
    end = tl.load(tables[2] + sequence + 1)
    is_valid = (row < num_rows) & (row < end)
    if has_slots:
        position = tl.load(tables[5] + row, mask=is_valid, other=0)
    else:
        position = tl.load(tables[3] + sequence) - end + row
    number = position // key_plane.page_tokens
    page = tl.load(tables[0] + tl.load(tables[1] + sequence) + number, mask=is_valid, other=0)
    places = page.to(tl.int64) * page_nbytes
    slot = position % key_plane.page_tokens
    if tl.program_id(2) == 0:
        new = _rows_of(rows[0], row, head, strides[0], is_valid, key_plane)
        if has_scales:
            new = _taken_off(new, number, head, extras, is_valid, num_pairs, turn_pages, key_plane)
        is_finite = _store(new, pages, places, slot, head, is_valid, True, key_plane)
    else:
        new = _rows_of(rows[1], row, head, strides[1], is_valid, value_plane)
        is_finite = _store(new, pages, places, slot, head, is_valid, False, value_plane)
    if has_summaries:
        tl.store(is_made + page, (row * 0).to(tl.uint8), mask=is_valid)
    if has_finite:
        tl.store(finite + sequence, (row * 0).to(tl.uint8), mask=is_valid & (is_finite == 0))


@triton.jit
def _rows_of(rows, row, head, strides, is_valid, plane: tl.constexpr):
    channel = tl.arange(0, plane.row_width)
    places = row.to(tl.int64)[:, None] * strides[0] + head * strides[1] + channel[None, :]
    mask = is_valid[:, None] & (channel < plane.width)[None, :]
    return tl.load(rows + places, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _taken_off(
    rows, number, head, extras, is_valid, num_pairs: tl.constexpr, turn_pages: tl.constexpr, plane: tl.constexpr
):
    """Keys without what they have in common in page `number` of their sequence."""
    pairs, turns, scales, bases = extras[0], extras[1], extras[2], extras[3]
    channel = tl.arange(0, plane.row_width)
    common = tl.full(rows.shape, 0.0, tl.float32)
    for pair in tl.range(num_pairs):
        place = head * num_pairs + pair
        turn = tl.load(pairs + place * 3 + 2) * 2 * turn_pages
        cosine = tl.load(turns + turn + number, mask=is_valid, other=0.0)
        sine = tl.load(turns + turn + turn_pages + number, mask=is_valid, other=0.0)
        first = tl.load(bases + place * 2)
        second = tl.load(bases + place * 2 + 1)
        is_first = (channel == tl.load(pairs + place * 3))[None, :]
        is_second = (channel == tl.load(pairs + place * 3 + 1))[None, :]
        common += tl.where(is_first, (first * cosine - second * sine)[:, None], 0.0)
        common += tl.where(is_second, (second * cosine + first * sine)[:, None], 0.0)
    exists = channel < plane.width
    scale = tl.load(scales + head * plane.width + channel, mask=exists, other=1.0)
    return tl.where(exists[None, :], tl.div_rn(rows - common, tl.broadcast_to(scale[None, :], rows.shape)), 0.0)


@triton.jit
def _store(rows, pages, places, slot, head, is_valid, is_key: tl.constexpr, plane: tl.constexpr):
    """Returns which rows are finite as they are stored."""
    if plane.rotated_channels > 1:
        rows = hadamard(rows, plane)
    start = pages + places + plane.offset + head * plane.head_nbytes
    channel = tl.arange(0, plane.row_width)
    mask = is_valid[:, None] & (channel < plane.width)[None, :]
    if plane.is_int4:
        return _store_int4(rows, start, slot, is_valid, mask, is_key, plane)
    else:
        return _store_numbers(rows, start, slot, is_valid, mask, is_key, plane)


@triton.jit
def _store_numbers(rows, start, slot, is_valid, mask, is_key: tl.constexpr, plane: tl.constexpr):
    channel = tl.arange(0, plane.row_width)
    where = _places(slot, channel, is_key, plane)
    if plane.is_coded:
        largest: tl.constexpr = plane.largest
        scale, is_finite = _scale_of(tl.max(tl.abs(rows), axis=1), largest, _are_finite(rows))
        quotients = tl.div_rn(rows, tl.broadcast_to(scale[:, None], rows.shape))
        codes = _bounded(tl.where(quotients == quotients, quotients, 0.0), -largest, largest)
        tl.store(start[:, None] + where, _code_of(codes, plane), mask=mask)
        _store_scales(scale, start, slot, is_valid, plane)
        return is_finite
    elif plane.encoding == "fp32":
        tl.store(start[:, None].to(tl.pointer_type(tl.float32)) + where, rows, mask=mask)
        return _are_finite(rows)
    elif plane.encoding == "fp16":
        numbers = rows.to(tl.float16)
        tl.store(start[:, None].to(tl.pointer_type(tl.float16)) + where, numbers, mask=mask)
        return _are_finite(numbers.to(tl.float32))
    else:
        numbers = rows.to(tl.bfloat16)
        tl.store(start[:, None].to(tl.pointer_type(tl.bfloat16)) + where, numbers, mask=mask)
        return _are_finite(numbers.to(tl.float32))


@triton.jit
def _places(slot, lane, is_key: tl.constexpr, plane: tl.constexpr):
    """Where the number, or byte, of a token and lane lies in a head, in numbers or bytes: formats/words.py."""
    count: tl.constexpr = plane.count
    if is_key:
        return slot[:, None] * count + (lane // count * (plane.page_tokens * count) + lane % count)[None, :]
    else:
        return (slot // count * (plane.lanes * count) + slot % count)[:, None] + lane[None, :] * count


@triton.jit
def _are_finite(rows):
    """Which rows have no NaN and no infinity: int32 [rows]."""
    bits = rows.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.min((bits < INFINITY_BITS).to(tl.int32), axis=1)


@triton.jit
def _bounded(numbers, least, most):
    return tl.minimum(tl.maximum(numbers, least), most)


@triton.jit
def _rounded(numbers):
    return (numbers + ROUNDER) - ROUNDER


@triton.jit
def _scale_of(span, largest: tl.constexpr, is_finite):
    """As `scales_of` in formats/scaled.py has it; and whether it is a number."""
    is_finite = is_finite & ((span.to(tl.int32, bitcast=True) & 0x7FFFFFFF) < INFINITY_BITS).to(tl.int32)
    span = tl.where(is_finite != 0, span, 0.0)
    bits = tl.div_rn(span, tl.full(span.shape, largest, tl.float32)).to(tl.int32, bitcast=True) + 0xFFFF
    bits = tl.where(is_finite != 0, tl.maximum(bits, SMALLEST_SCALE_BITS), NAN_BITS)
    return ((bits >> 16) << 16).to(tl.float32, bitcast=True), is_finite


@triton.jit
def _store_scales(scale, start, slot, is_valid, plane: tl.constexpr):
    halves = (scale.to(tl.int32, bitcast=True) >> 16).to(tl.int16)
    tl.store((start + plane.scales_offset).to(tl.pointer_type(tl.int16)) + slot, halves, mask=is_valid)


@triton.jit
def _code_of(codes, plane: tl.constexpr):
    if plane.encoding == "int8":
        return _rounded(codes).to(tl.int32).to(tl.uint8)
    elif plane.encoding == "fp8_e4m3":
        return _float_code(codes, 3, 7)
    else:
        return _float_code(codes, 2, 15)


@triton.jit
def _float_code(numbers, mantissa_bits: tl.constexpr, bias: tl.constexpr):
    """fp8 of numbers no larger than its largest, ties to even: cards before Ada have no instruction for it."""
    bits = numbers.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    cut: tl.constexpr = 23 - mantissa_bits
    rounded = (size + ((1 << (cut - 1)) - 1) + ((size >> cut) & 1)) >> cut
    small = _rounded(tl.abs(numbers) * 2.0 ** (bias - 1 + mantissa_bits)).to(tl.int32)
    is_small = tl.abs(numbers) < 2.0 ** (1 - bias)
    code = tl.where(is_small, small, rounded - ((127 - bias) << mantissa_bits))
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _store_int4(rows, start, slot, is_valid, mask, is_key: tl.constexpr, plane: tl.constexpr):
    """As formats/int4.py codes rows: as small integers first, then group by group."""
    channel = tl.arange(0, plane.row_width)
    exists = (channel < plane.width)[None, :]
    is_finite = _are_finite(rows)
    if plane.num_groups == 1:
        span = tl.max(tl.maximum(rows, 0.0), axis=1) - tl.min(tl.minimum(rows, 0.0), axis=1)
        scale, is_finite = _scale_of(span, LARGEST_CODE, is_finite)
    else:
        scale, is_finite = _scale_of(tl.max(tl.abs(rows), axis=1), LARGEST_NUMBER, is_finite)
    numbers = tl.div_rn(rows, tl.broadcast_to(scale[:, None], rows.shape))
    numbers = tl.where((numbers == numbers) & exists, _rounded(numbers), 0.0)
    group = channel // plane.lanes * plane.second_half_group + channel % plane.lanes // plane.group_channels
    group = tl.where(channel < plane.width, group, -1)
    num_groups: tl.constexpr = plane.num_groups
    tops, bottoms = _ends_of(numbers, group, num_groups)
    if num_groups == 1:
        step = tl.full(rows.shape, 1.0, tl.float32)
        codes, zero = _with_step(numbers, tops, bottoms, step)
    else:
        span = tops - bottoms
        least = tl.ceil(tl.div_rn(span, tl.full(span.shape, LARGEST_CODE, tl.float32)))
        step = _bounded(least, 1.0, LARGEST_STEP)
        less = tl.maximum(step - 1.0, 1.0)
        codes, zero = _with_step(numbers, tops, bottoms, step)
        others, other_zero = _with_step(numbers, tops, bottoms, less)
        error = (codes - zero) * step - numbers
        other_error = (others - other_zero) * less - numbers
        is_better = _is_better(other_error * other_error - error * error, group, num_groups)
        codes = tl.where(is_better, others, codes)
        zero = tl.where(is_better, other_zero, zero)
        step = tl.where(is_better, less, step)
    levels = (step - 1.0 + zero * 16.0).to(tl.int32).to(tl.uint8)
    is_first = (channel % plane.lanes % plane.group_channels == 0) & ((channel < plane.lanes) | (plane.num_groups > 1))
    where = group[None, :] * plane.page_tokens + slot[:, None]
    tl.store((start + plane.levels_offset)[:, None] + where, levels, mask=mask & is_first[None, :])
    _store_scales(scale, start, slot, is_valid, plane)
    lane = tl.arange(0, plane.row_width // 2)
    codes = codes.to(tl.int32)
    low = tl.gather(codes, tl.broadcast_to(lane[None, :], (rows.shape[0], lane.shape[0])), axis=1)
    upper = tl.minimum(lane + plane.lanes, plane.row_width - 1)
    high = tl.gather(codes, tl.broadcast_to(upper[None, :], (rows.shape[0], lane.shape[0])), axis=1)
    where = _places(slot, lane, is_key, plane)
    both = is_valid[:, None] & (lane < plane.lanes)[None, :]
    tl.store(start[:, None] + where, (low | (high << 4)).to(tl.uint8), mask=both)
    return is_finite


@triton.jit
def _ends_of(numbers, group, num_groups: tl.constexpr):
    """The largest and the smallest number, or zero, of the group of each channel."""
    tops = tl.full(numbers.shape, 0.0, tl.float32)
    bottoms = tl.full(numbers.shape, 0.0, tl.float32)
    for index in tl.range(num_groups):
        own = (group == index)[None, :]
        tops = tl.where(own, tl.max(tl.where(own, numbers, 0.0), axis=1)[:, None], tops)
        bottoms = tl.where(own, tl.min(tl.where(own, numbers, 0.0), axis=1)[:, None], bottoms)
    return tl.maximum(tops, 0.0), tl.minimum(bottoms, 0.0)


@triton.jit
def _with_step(numbers, tops, bottoms, step):
    """Codes, and zeros, of groups whose step is given."""
    # The constant comes second: Triton 3.7's interpreter cannot take a block from it.
    zero = _bounded(_rounded((-tl.div_rn(tops + bottoms, step) + LARGEST_CODE) / 2.0), 0.0, LARGEST_CODE)
    return _bounded(_rounded(tl.div_rn(numbers, step)) + zero, 0.0, LARGEST_CODE), zero


@triton.jit
def _is_better(gains, group, num_groups: tl.constexpr):
    """Whether the sum of `gains` over the group of each channel is below zero."""
    better = gains < float("-inf")
    for index in tl.range(num_groups):
        own = (group == index)[None, :]
        better = tl.where(own, tl.sum(tl.where(own, gains, 0.0), axis=1)[:, None] < 0.0, better)
    return better
