"""From the words of a page to tiles of numbers, in registers: keys [channels, tokens], values [tokens, channels].

Knows how formats/*.py lay bytes. Codes come without the scale of their token: it multiplies scores, and weights of
values. Channels of int4 come half by half, as far as the tile has them; `channels_of` says which they are.
"""

import triton
import triton.language as tl

# Bits that make fp32 of a code: 2**23 + 128 + code, whose sign bit is turned; and 128 + code in the upper half.
BYTE_BIAS = tl.constexpr(0x4B000080)
BYTE_BIASED_ZERO = tl.constexpr(8388608.0 + 128.0)
NIBBLE_BIAS = tl.constexpr(0x43000000)
NIBBLE_BIASED_ZERO = tl.constexpr(128.0)


@triton.jit
def _number_of(words, index: tl.constexpr, plane: tl.constexpr, dtype: tl.constexpr):
    """Number `index` of each word."""
    encoding: tl.constexpr = plane.encoding
    if encoding == "fp32":
        numbers = words.to(tl.float32, bitcast=True)
    elif encoding == "bf16":
        numbers = (words >> (16 * index)).to(tl.int16).to(tl.bfloat16, bitcast=True)
    elif encoding == "fp16":
        numbers = (words >> (16 * index)).to(tl.int16).to(tl.float16, bitcast=True)
    elif encoding == "int8":
        biased = ((words >> (8 * index)) & 0xFF) ^ BYTE_BIAS
        numbers = biased.to(tl.float32, bitcast=True) - BYTE_BIASED_ZERO
    elif encoding == "fp8_e4m3":
        numbers = (words >> (8 * index)).to(tl.int8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
    else:
        numbers = (words >> (8 * index)).to(tl.int8).to(tl.float8e5, bitcast=True).to(tl.float16)
    return numbers.to(dtype)


@triton.jit
def nibble_of(words, steps, offsets, index: tl.constexpr, dtype: tl.constexpr):
    """(code - zero) * step of nibble `index` of each word; `offsets` is (128 + zero) * step."""
    if index < 4:
        placed = words << (16 - 4 * index)
    else:
        placed = words >> (4 * index - 16)
    biased = ((placed & 0x000F0000) | NIBBLE_BIAS).to(tl.float32, bitcast=True)
    return tl.fma(biased, steps, -offsets).to(dtype)


@triton.jit
def steps_of(levels):
    """Steps, and what is taken off codes that were multiplied by them."""
    steps = (((levels & 0x0F) << 16) | NIBBLE_BIAS).to(tl.float32, bitcast=True) - (NIBBLE_BIASED_ZERO - 1.0)
    zeros = (((levels & 0xF0) << 12) | NIBBLE_BIAS).to(tl.float32, bitcast=True)
    return steps, zeros * steps


@triton.jit
def interleaved(numbers):
    """Tuples of one, two or four tiles [rows, columns] as [count * rows, columns], row by row in turn."""
    if len(numbers) == 1:
        return numbers[0]
    elif len(numbers) == 2:
        pairs = tl.join(numbers[0], numbers[1])
        return tl.reshape(tl.permute(pairs, (0, 2, 1)), (2 * pairs.shape[0], pairs.shape[1]))
    else:
        pairs = tl.join(tl.join(numbers[0], numbers[2]), tl.join(numbers[1], numbers[3]))
        four = tl.reshape(pairs, (pairs.shape[0], pairs.shape[1], 4))
        return tl.reshape(tl.permute(four, (0, 2, 1)), (4 * four.shape[0], four.shape[1]))


@triton.jit
def _numbers_of(words, plane: tl.constexpr, dtype: tl.constexpr):
    """The numbers of words [rows, columns] as [count * rows, columns]."""
    count: tl.constexpr = plane.count
    if count == 1:
        return _number_of(words, 0, plane, dtype)
    elif count == 2:
        return interleaved((_number_of(words, 0, plane, dtype), _number_of(words, 1, plane, dtype)))
    else:
        return interleaved(
            (
                _number_of(words, 0, plane, dtype),
                _number_of(words, 1, plane, dtype),
                _number_of(words, 2, plane, dtype),
                _number_of(words, 3, plane, dtype),
            )
        )


@triton.jit
def spread_rows(levels, rows: tl.constexpr):
    """[groups, columns] as [rows, columns], each as often as a group has rows."""
    groups: tl.constexpr = levels.shape[0]
    columns: tl.constexpr = levels.shape[1]
    wide = tl.broadcast_to(levels[:, None, :], (groups, rows // groups, columns))
    return tl.reshape(wide, (rows, columns))


@triton.jit
def spread_columns(levels, columns: tl.constexpr):
    """[rows, groups] as [rows, columns]."""
    rows: tl.constexpr = levels.shape[0]
    groups: tl.constexpr = levels.shape[1]
    wide = tl.broadcast_to(levels[:, :, None], (rows, groups, columns // groups))
    return tl.reshape(wide, (rows, columns))


@triton.jit
def key_tile(pages, page, slot, head, keep, part: tl.constexpr, shape: tl.constexpr):
    """Keys [channels, tokens] of part number `part` of a plane, of tokens at places `slot` of pages `page`, int64.

    Keys of tokens that are not in `keep` are zeros, or any finite number where they are codes.
    """
    plane: tl.constexpr = shape.keys
    dtype: tl.constexpr = shape.key_dot
    first: tl.constexpr = plane.parts[part].first
    rows: tl.constexpr = plane.parts[part].rows
    row = first + tl.arange(0, rows)
    words = pages.to(tl.pointer_type(tl.int32)) + plane.offset // 4 + head * (plane.head_nbytes // 4)
    places = (page * (shape.page_nbytes // 4))[None, :] + (row[:, None] * plane.page_tokens + slot[None, :])
    places = tl.max_contiguous(tl.multiple_of(places, (1, 16)), (1, 16))
    if first + rows > plane.word_rows:
        packed = tl.load(words + places, mask=row[:, None] < plane.word_rows, other=0)
    else:
        packed = tl.load(words + places)
    packed = tl.where(keep[None, :], packed, 0)
    if plane.is_int4:
        low = _key_nibbles(packed, pages, page, slot, head, part, 0, shape)
        high = _key_nibbles(packed, pages, page, slot, head, part, 1, shape)
        both = tl.permute(tl.join(low, high), (2, 0, 1))
        return tl.reshape(both, (2 * low.shape[0], low.shape[1]))
    else:
        return _numbers_of(packed, plane, dtype)


@triton.jit
def _key_nibbles(packed, pages, page, slot, head, part: tl.constexpr, half: tl.constexpr, shape: tl.constexpr):
    plane: tl.constexpr = shape.keys
    dtype: tl.constexpr = shape.key_dot
    rows: tl.constexpr = plane.parts[part].rows
    groups: tl.constexpr = plane.part_groups(part)
    group = plane.part_first_group(part) + tl.arange(0, groups)
    levels = pages + plane.offset + plane.levels_offset + head * plane.head_nbytes
    places = (page * shape.page_nbytes)[None, :] + (
        (half * plane.second_half_group + group)[:, None] * plane.page_tokens + slot[None, :]
    )
    exists = (group < plane.half_groups)[:, None]
    steps, offsets = steps_of(tl.load(levels + places, mask=exists, other=0).to(tl.int32))
    steps = spread_rows(steps, rows)
    offsets = spread_rows(offsets, rows)
    return interleaved(
        (
            nibble_of(packed, steps, offsets, half, dtype),
            nibble_of(packed, steps, offsets, 2 + half, dtype),
            nibble_of(packed, steps, offsets, 4 + half, dtype),
            nibble_of(packed, steps, offsets, 6 + half, dtype),
        )
    )


@triton.jit
def numbers_of(table, token, length, plane: tl.constexpr):
    """The pages of tokens; none, -1, of those from `length` on."""
    return tl.load(table + token // plane.page_tokens, mask=token < length, other=-1)


@triton.jit
def value_tokens(first, shape: tl.constexpr):
    """The first token of each row of words of a tile of values."""
    count: tl.constexpr = shape.values.count
    return first + count * tl.arange(0, shape.tile.tokens // count)


@triton.jit
def value_tile(pages, number, first, length, head, shape: tl.constexpr):
    """Values [tokens, channels] of the tile that starts at token `first`, from pages `number` of `value_tokens`.

    Values of tokens from `length` on, and of pages that are gone, are zeros, or any finite number where they are codes.
    """
    plane: tl.constexpr = shape.values
    dtype: tl.constexpr = shape.value_dot
    count: tl.constexpr = plane.count
    token = value_tokens(first, shape)
    lane = tl.arange(0, plane.block_lanes)
    page = tl.maximum(number, 0).to(tl.int64)
    words = pages.to(tl.pointer_type(tl.int32)) + plane.offset // 4 + head * (plane.head_nbytes // 4)
    row = token % plane.page_tokens // count
    places = (page * (shape.page_nbytes // 4) + row * plane.lanes)[:, None] + lane[None, :]
    if plane.lanes % 4 == 0:
        places = tl.max_contiguous(tl.multiple_of(places, (1, 4)), (1, 4))
    if plane.block_lanes > plane.lanes:
        packed = tl.load(words + places, mask=lane[None, :] < plane.lanes, other=0)
    else:
        packed = tl.load(words + places)
    packed = packed & _kept_bits(length - token, number, count)[:, None]
    if plane.is_int4:
        low = _value_nibbles(packed, pages, page, row, head, 0, shape)
        high = _value_nibbles(packed, pages, page, row, head, 1, shape)
        both = tl.permute(tl.join(low, high), (0, 2, 1))
        return tl.reshape(both, (low.shape[0], 2 * low.shape[1]))
    else:
        return _numbers_of(packed, plane, dtype)


@triton.jit
def _kept_bits(left, number, count: tl.constexpr):
    """Masks for words of `count` tokens, `left` of which are to be kept; none where a page is gone."""
    some = (1 << (tl.minimum(tl.maximum(left, 0), count - 1) * (32 // count))) - 1
    return tl.where(number < 0, 0, tl.where(left >= count, -1, some))


@triton.jit
def _value_nibbles(packed, pages, page, row, head, half: tl.constexpr, shape: tl.constexpr):
    plane: tl.constexpr = shape.values
    group = tl.arange(0, plane.block_groups)
    # A word has the levels of the four tokens whose codes a word has.
    start = (plane.offset + plane.levels_offset) // 4 + head * (plane.head_nbytes // 4)
    places = (half * plane.second_half_group + group) * (plane.page_tokens // 4)
    words = pages.to(tl.pointer_type(tl.int32)) + start
    rows = (page * (shape.page_nbytes // 4) + row)[:, None]
    levels = tl.load(words + (rows + places[None, :]), mask=(group < plane.half_groups)[None, :], other=0)
    return interleaved(
        (
            _value_nibble(packed, levels, 0, half, shape),
            _value_nibble(packed, levels, 1, half, shape),
            _value_nibble(packed, levels, 2, half, shape),
            _value_nibble(packed, levels, 3, half, shape),
        )
    )


@triton.jit
def _value_nibble(packed, levels, index: tl.constexpr, half: tl.constexpr, shape: tl.constexpr):
    steps, offsets = steps_of(levels >> (8 * index))
    dtype: tl.constexpr = shape.value_dot
    columns: tl.constexpr = shape.values.block_lanes
    steps = spread_columns(steps, columns)
    return nibble_of(packed, steps, spread_columns(offsets, columns), 2 * index + half, dtype)


@triton.jit
def scales_of(pages, page, slot, head, is_key: tl.constexpr, shape: tl.constexpr):
    """The scales of tokens, fp32."""
    plane: tl.constexpr = shape.keys if is_key else shape.values
    scales = pages.to(tl.pointer_type(tl.bfloat16))
    start = (plane.offset + plane.scales_offset) // 2 + head * (plane.head_nbytes // 2)
    return tl.load(scales + start + (page * (shape.page_nbytes // 2) + slot)).to(tl.float32)


@triton.jit
def channels_of(block: tl.constexpr, first: tl.constexpr, plane: tl.constexpr):
    """Which channels a tile of `block` channels has, from lane `first` of the plane on; and whether there are such."""
    index = tl.arange(0, block)
    lane = first + index % (block // plane.halves)
    return index // (block // plane.halves) * plane.lanes + lane, lane < plane.lanes
