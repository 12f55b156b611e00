"""From the words of a page to tiles of numbers, in registers: keys [words, tokens], values [words, channels].

Knows how formats/*.py lay bytes. A word holds several numbers that products sum over, so that there is a tile, and a
product, for each: words go from memory to where products take them, and nothing is moved between threads. Codes come
without the scale of their token: it multiplies scores, and weights of values.
"""

import triton
import triton.language as tl

from pagoda.kernels.triton import ptx
from pagoda.kernels.triton.tables import shares_of

# Bits that make fp16 of codes, two at a time: 1024 + 128 + code of a byte whose sign bit is turned, 64 + code of half a
# byte in the upper half of one.
BYTE_BIASES = tl.constexpr(0x64806480)
BYTE_BIAS = tl.constexpr(1152.0)
NIBBLE_BIASES = tl.constexpr(0x54005400)
NIBBLES = tl.constexpr(0x00F000F0)
# Of steps, less one, in the lower half of a byte: 1024 + step - 1.
STEP_BIASES = tl.constexpr(0x64006400)
STEP_BIAS = tl.constexpr(1023.0)
LOW_NIBBLES = tl.constexpr(0x000F000F)
# 0xFF00FF00, and the signs of both halves, as numbers with a sign.
UPPER_BYTES = tl.constexpr(-0x00FF0100)
SIGNS = tl.constexpr(-0x7FFF8000)


@triton.jit
def _numbers_of(words, shape: tl.constexpr, plane: tl.constexpr, dtype: tl.constexpr):
    """Numbers of words that are no int4, a tile for each: codes without their scales, and divided by `code_factor`."""
    if plane.is_coded:
        tiles = _bytes_of(words, shape, plane)
        return tiles[0].to(dtype), tiles[1].to(dtype), tiles[2].to(dtype), tiles[3].to(dtype)
    elif plane.encoding == "fp32":
        return (words.to(tl.float32, bitcast=True).to(dtype),)
    elif plane.encoding == "bf16":
        low = words.to(tl.int16).to(tl.bfloat16, bitcast=True)
        return low.to(dtype), (words >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True).to(dtype)
    else:
        return _half_of(words, 0).to(dtype), _half_of(words, 1).to(dtype)


@triton.jit
def _bytes_of(words, shape: tl.constexpr, plane: tl.constexpr):
    """Codes of a byte as fp16, where all of them are exact."""
    if plane.encoding == "int8":
        if shape.has_ptx:
            biased = _four_of(words, ptx.INT8)
        else:
            biased = _apart((words & 0x00FF00FF) ^ BYTE_BIASES, ((words >> 8) & 0x00FF00FF) ^ BYTE_BIASES)
        return biased[0] - BYTE_BIAS, biased[1] - BYTE_BIAS, biased[2] - BYTE_BIAS, biased[3] - BYTE_BIAS
    elif plane.encoding == "fp8_e4m3":
        return _four_of(words, ptx.E4M3) if shape.has_ptx else _apart(_e4m3_pairs(words << 8), _e4m3_pairs(words))
    elif shape.has_ptx:
        return _four_of(words, ptx.E5M2)
    else:
        return _apart((words << 8) & UPPER_BYTES, words & UPPER_BYTES)


@triton.jit
def _apart(even, odd):
    """The four numbers of pairs of fp16."""
    return _half_of(even, 0), _half_of(odd, 0), _half_of(even, 1), _half_of(odd, 1)


@triton.jit
def _four_of(words, instructions: tl.constexpr):
    dtypes: tl.constexpr = (tl.float16,) * 4
    return tl.inline_asm_elementwise(instructions, ptx.FOUR, [words], dtypes, True, 2)


@triton.jit
def _half_of(pairs, index: tl.constexpr):
    return (pairs >> (16 * index)).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def _e4m3_pairs(pairs):
    """fp16 of the upper bytes of halves of words, divided by `code_factor`."""
    return ((pairs >> 1) & 0x3F803F80) | (pairs & SIGNS)


@triton.jit
def _eight_of(words, instructions: tl.constexpr):
    dtypes: tl.constexpr = (tl.float16,) * 8
    return tl.inline_asm_elementwise(instructions, ptx.EIGHT, [words], dtypes, True, 2)


@triton.jit
def _biased_nibbles(words, shape: tl.constexpr):
    """64 + code of int4, a tile for each of a word: byte after byte, the lower half first."""
    if shape.has_ptx:
        return _eight_of(words, ptx.INT4)
    else:
        low = ((words << 4) & NIBBLES) | NIBBLE_BIASES
        high = (words & NIBBLES) | NIBBLE_BIASES
        odd_low = ((words >> 4) & NIBBLES) | NIBBLE_BIASES
        odd_high = ((words >> 8) & NIBBLES) | NIBBLE_BIASES
        return (
            _half_of(low, 0), _half_of(high, 0), _half_of(odd_low, 0), _half_of(odd_high, 0),
            _half_of(low, 1), _half_of(high, 1), _half_of(odd_low, 1), _half_of(odd_high, 1),
        )  # fmt: skip


@triton.jit
def _levels_of(words, shape: tl.constexpr):
    """Of each byte of words, which has step - 1 and a zero, how `_biased_nibbles` become numbers; see `_at_level`."""
    if shape.has_ptx:
        biased = _eight_of(words, ptx.LEVELS)
    else:
        step = (words & LOW_NIBBLES) | STEP_BIASES
        zero = (words & NIBBLES) | NIBBLE_BIASES
        odd_step = ((words >> 8) & LOW_NIBBLES) | STEP_BIASES
        odd_zero = ((words >> 8) & NIBBLES) | NIBBLE_BIASES
        biased = (
            _half_of(step, 0), _half_of(zero, 0), _half_of(odd_step, 0), _half_of(odd_zero, 0),
            _half_of(step, 1), _half_of(zero, 1), _half_of(odd_step, 1), _half_of(odd_zero, 1),
        )  # fmt: skip
    levels = ()
    for index in tl.static_range(4):
        step = biased[2 * index] - STEP_BIAS
        levels += ((step, biased[2 * index + 1] * step * -1.0),)
    return levels


@triton.jit
def _at_level(biased, level, dtype: tl.constexpr):
    """(code - zero) * step, exact in fp16."""
    return tl.fma(biased, level[0], level[1]).to(dtype)


@triton.jit
def _spread_rows(levels, rows: tl.constexpr):
    """[groups, columns] as [rows, columns], each as often as a group has rows."""
    groups: tl.constexpr = levels.shape[0]
    columns: tl.constexpr = levels.shape[1]
    wide = tl.broadcast_to(levels[:, None, :], (groups, rows // groups, columns))
    return tl.reshape(wide, (rows, columns))


@triton.jit
def _spread_columns(levels, columns: tl.constexpr):
    """[rows, groups] as [rows, columns]."""
    rows: tl.constexpr = levels.shape[0]
    groups: tl.constexpr = levels.shape[1]
    wide = tl.broadcast_to(levels[:, :, None], (rows, groups, columns // groups))
    return tl.reshape(wide, (rows, columns))


@triton.jit
def key_tiles(pages, page, slot, head, levels, keep, is_masked: tl.constexpr, part: tl.constexpr, shape: tl.constexpr):
    """Keys of part number `part` of a plane as tiles [words, tokens], one for each number of a word.

    Tokens are at places `slot` of pages `page`, or of cells if there are such; see `tables.py`. There may be tokens
    that are not in `keep` if `is_masked`: their latents are zeros, or any finite number where they are codes; other
    keys of such tokens are anything.
    """
    plane: tl.constexpr = shape.keys
    dtype: tl.constexpr = shape.key_dot
    first: tl.constexpr = plane.parts[part].first
    rows: tl.constexpr = plane.parts[part].rows
    row = first + tl.arange(0, rows)
    words = pages.to(tl.pointer_type(tl.int32)) + plane.offset // 4 + head * (plane.head_nbytes // 4)
    columns = (shares_of(page, 4, plane, shape) + slot)[None, :]
    places = columns + (row.to(tl.int64) * plane.page_tokens)[:, None]
    run: tl.constexpr = shape.run_tokens
    places = tl.max_contiguous(tl.multiple_of(places, (1, run)), (1, run))
    if first + rows > plane.word_rows:
        packed = tl.load(words + places, mask=row[:, None] < plane.word_rows, other=0)
    else:
        packed = tl.load(words + places)
    if shape.has_latents and (is_masked or plane.is_coded):
        packed = tl.where(keep[None, :], packed, 0)
    if plane.is_int4:
        low = _levels_of(_spread_rows(levels[2 * part].to(tl.int32), rows), shape)[0]
        high = _levels_of(_spread_rows(levels[2 * part + 1].to(tl.int32), rows), shape)[0]
        codes = _biased_nibbles(packed, shape)
        tiles = ()
        for index in tl.static_range(4):
            tiles += (
                _at_level(codes[2 * index], low, dtype),
                _at_level(codes[2 * index + 1], high, dtype),
            )
        return tiles
    else:
        return _numbers_of(packed, shape, plane, dtype)


@triton.jit
def key_levels(pages, page, slot, head, shape: tl.constexpr):
    """The bytes that tell of the levels of int4 keys, [groups, tokens], part after part and half by half."""
    levels = ()
    if shape.keys.is_int4:
        for part in tl.static_range(tl.constexpr(shape.num_parts)):
            for half in tl.static_range(2):
                levels += (_key_levels(pages, page, slot, head, part, half, shape),)
    return levels


@triton.jit
def _key_levels(pages, page, slot, head, part: tl.constexpr, half: tl.constexpr, shape: tl.constexpr):
    plane: tl.constexpr = shape.keys
    groups: tl.constexpr = plane.part_groups(part)
    group = plane.part_first_group(part) + tl.arange(0, groups)
    levels = pages + plane.offset + plane.levels_offset + head * plane.head_nbytes
    places = shares_of(page, 1, plane, shape)[None, :] + (
        (half * plane.second_half_group + group)[:, None] * plane.page_tokens + slot[None, :]
    )
    places = tl.max_contiguous(tl.multiple_of(places, (1, 16)), (1, 16))
    exists = (group < plane.half_groups)[:, None]
    return tl.load(levels + places, mask=exists, other=0)


@triton.jit
def value_words(shape: tl.constexpr):
    """Which words of a tile of values are read in turn: as threads hold the weights of their tokens after products."""
    word = tl.arange(0, shape.tile.tokens // shape.values.count)
    if shape.values.count > 1:
        word = word // 8 * 8 + word % 2 * 4 + word % 8 // 2
    return word


@triton.jit
def weights_apart(weights, shape: tl.constexpr):
    """Weights [rows, tokens] as tiles [rows, words], one for each number of a word of values: see `value_words`."""
    count: tl.constexpr = shape.values.count
    if count == 1:
        return (weights,)
    elif count == 2:
        first, second = _halves_of(weights)
        return _as_words(first), _as_words(second)
    else:
        even, odd = _halves_of(weights)
        first, third = _halves_of(even)
        second, fourth = _halves_of(odd)
        return _as_words(first), _as_words(second), _as_words(third), _as_words(fourth)


@triton.jit
def _halves_of(tile):
    """The even and the odd columns."""
    rows: tl.constexpr = tile.shape[0]
    columns: tl.constexpr = tile.shape[1]
    return tl.split(tl.reshape(tile, (rows, columns // 2, 2)))


@triton.jit
def _as_words(tile):
    rows: tl.constexpr = tile.shape[0]
    columns: tl.constexpr = tile.shape[1]
    return tl.reshape(tl.permute(tl.reshape(tile, (rows, columns // 8, 2, 4)), (0, 1, 3, 2)), (rows, columns))


@triton.jit
def value_tiles(pages, number, token, length, head, is_masked: tl.constexpr, shape: tl.constexpr):
    """Values as tiles [words, lanes]: number by number of a word, those of int4 half by half of the lanes.

    `token` is the first of each word, and `number` its page. Values of tokens from `length` on, and of pages that are
    gone, are zeros, or any finite number where they are codes; there may be such tokens if `is_masked`.
    """
    plane: tl.constexpr = shape.values
    dtype: tl.constexpr = shape.value_dot
    count: tl.constexpr = plane.count
    lane = tl.arange(0, plane.block_lanes)
    page = tl.maximum(number, 0) if is_masked else number
    words = pages.to(tl.pointer_type(tl.int32)) + plane.offset // 4 + head * (plane.head_nbytes // 4)
    row = token % plane.page_tokens // count
    places = (shares_of(page, 4, plane, shape) + row * plane.lanes)[:, None] + lane.to(tl.int64)[None, :]
    if plane.lanes % 4 == 0:
        places = tl.max_contiguous(tl.multiple_of(places, (1, 4)), (1, 4))
    if plane.block_lanes > plane.lanes:
        packed = tl.load(words + places, mask=lane[None, :] < plane.lanes, other=0)
    else:
        packed = tl.load(words + places)
    if is_masked:
        packed = packed & _kept_bits(length - token, number, count)[:, None]
    if plane.is_int4:
        low = _levels_of(_value_levels(pages, page, row, head, 0, shape), shape)
        high = _levels_of(_value_levels(pages, page, row, head, 1, shape), shape)
        codes = _biased_nibbles(packed, shape)
        tiles = ()
        for index in tl.static_range(4):
            tiles += (
                _at_level(codes[2 * index], low[index], dtype),
                _at_level(codes[2 * index + 1], high[index], dtype),
            )
        return tiles
    else:
        return _numbers_of(packed, shape, plane, dtype)


@triton.jit
def _kept_bits(left, number, count: tl.constexpr):
    """Masks for words of `count` tokens, `left` of which are to be kept; none where a page is gone."""
    some = (1 << (tl.minimum(tl.maximum(left, 0), count - 1) * (32 // count))) - 1
    return tl.where(number < 0, 0, tl.where(left >= count, -1, some))


@triton.jit
def _value_levels(pages, page, row, head, half: tl.constexpr, shape: tl.constexpr):
    """Of words of values, half by half: a word has the levels of the four tokens whose codes a word has."""
    plane: tl.constexpr = shape.values
    group = tl.arange(0, plane.block_groups)
    start = (plane.offset + plane.levels_offset) // 4 + head * (plane.head_nbytes // 4)
    places = (half * plane.second_half_group + group) * (plane.page_tokens // 4)
    words = pages.to(tl.pointer_type(tl.int32)) + start
    rows = (shares_of(page, 4, plane, shape) + row)[:, None]
    columns: tl.constexpr = plane.block_lanes
    levels = tl.load(words + (rows + places[None, :]), mask=(group < plane.half_groups)[None, :], other=0)
    return _spread_columns(levels, columns)


@triton.jit
def scales_of(pages, page, slot, head, is_key: tl.constexpr, shape: tl.constexpr):
    """What tiles are multiplied by, token by token: bf16, and without `code_factor`."""
    plane: tl.constexpr = shape.keys if is_key else shape.values
    scales = pages.to(tl.pointer_type(tl.bfloat16))
    start = (plane.offset + plane.scales_offset) // 2 + head * (plane.head_nbytes // 2)
    run: tl.constexpr = min(2 * shape.run_tokens, 16)
    places = tl.max_contiguous(tl.multiple_of(shares_of(page, 2, plane, shape) + slot, run), run)
    return tl.load(scales + start + places)


@triton.jit
def channels_of(lane, half: tl.constexpr, plane: tl.constexpr):
    """Which channels are in `half` of lanes, and whether there are such."""
    return half * plane.lanes + lane, lane < plane.lanes
