"""From the words of a page to tiles of numbers, in registers: keys [words, tokens], values [words, channels].

Knows how formats/*.py lay bytes. A word holds several numbers that products sum over, so that there is a tile, and a
product, for each: words go from memory to where products take them, and nothing is moved between threads. Codes come
without the scale of their token: it multiplies scores, and weights of values.
"""

import triton
import triton.language as tl

# Bits that make fp32 of a byte, whose sign bit is turned: 2**23 + 128 + code; and bf16 of half a byte: 128 + code.
BYTE_BIAS = tl.constexpr(0x4B000080)
BYTE_BIASED_ZERO = tl.constexpr(8388608.0 + 128.0)
NIBBLE_BIAS = tl.constexpr(0x4300)
NIBBLE_BIASES = tl.constexpr(0x43004300)
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
def _nibble_of(words, levels, index: tl.constexpr, half: tl.constexpr, dtype: tl.constexpr):
    """(code - zero) * step of a half of byte `index` of each word; `levels` are zeros and steps of `_levels_of`.

    In bf16, where all of that is exact, and two numbers at a time: words have bytes `index` and `index` + 2 so far
    apart.
    """
    pairs = ((words >> (8 * (index % 2) + 4 * half)) & 0x000F000F) | NIBBLE_BIASES
    biased = (pairs >> (16 * (index // 2))).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return ((biased - levels[0]) * levels[1]).to(dtype)


@triton.jit
def _levels_of(levels):
    """Zeros, with the bias of codes, and steps: bf16."""
    zeros = (((levels >> 4) & 0x0F) | NIBBLE_BIAS).to(tl.int16).to(tl.bfloat16, bitcast=True)
    steps = ((levels & 0x0F) | NIBBLE_BIAS).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return zeros, steps - (NIBBLE_BIASED_ZERO - 1.0)


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
def key_tiles(pages, page, slot, head, keep, is_masked: tl.constexpr, part: tl.constexpr, shape: tl.constexpr):
    """Keys of part number `part` of a plane as tiles [words, tokens], one for each number of a word.

    Tokens are at places `slot` of pages `page`, int64. There may be tokens that are not in `keep` if `is_masked`: their
    latents are zeros, or any finite number where they are codes; other keys of such tokens are anything.
    """
    plane: tl.constexpr = shape.keys
    dtype: tl.constexpr = shape.key_dot
    first: tl.constexpr = plane.parts[part].first
    rows: tl.constexpr = plane.parts[part].rows
    row = first + tl.arange(0, rows)
    words = pages.to(tl.pointer_type(tl.int32)) + plane.offset // 4 + head * (plane.head_nbytes // 4)
    columns = (page * (shape.page_nbytes // 4) + slot)[None, :]
    places = columns + (row.to(tl.int64) * plane.page_tokens)[:, None]
    places = tl.max_contiguous(tl.multiple_of(places, (1, 16)), (1, 16))
    if first + rows > plane.word_rows:
        packed = tl.load(words + places, mask=row[:, None] < plane.word_rows, other=0)
    else:
        packed = tl.load(words + places)
    if shape.has_latents and (is_masked or plane.is_coded):
        packed = tl.where(keep[None, :], packed, 0)
    tiles = ()
    if plane.is_int4:
        low = _key_levels(pages, page, slot, head, part, 0, shape)
        high = _key_levels(pages, page, slot, head, part, 1, shape)
        for index in tl.static_range(4):
            tiles += (_nibble_of(packed, low, index, 0, dtype), _nibble_of(packed, high, index, 1, dtype))
    else:
        for index in tl.static_range(tl.constexpr(plane.count)):
            tiles += (_number_of(packed, index, plane, dtype),)
    return tiles


@triton.jit
def _key_levels(pages, page, slot, head, part: tl.constexpr, half: tl.constexpr, shape: tl.constexpr):
    """What `_nibble_of` takes for words of keys, half by half."""
    plane: tl.constexpr = shape.keys
    rows: tl.constexpr = plane.parts[part].rows
    groups: tl.constexpr = plane.part_groups(part)
    group = plane.part_first_group(part) + tl.arange(0, groups)
    levels = pages + plane.offset + plane.levels_offset + head * plane.head_nbytes
    places = (page * shape.page_nbytes)[None, :] + (
        (half * plane.second_half_group + group)[:, None] * plane.page_tokens + slot[None, :]
    )
    places = tl.max_contiguous(tl.multiple_of(places, (1, 16)), (1, 16))
    exists = (group < plane.half_groups)[:, None]
    zeros, steps = _levels_of(tl.load(levels + places, mask=exists, other=0).to(tl.int32))
    return _spread_rows(zeros, rows), _spread_rows(steps, rows)


@triton.jit
def numbers_of(table, token, length, plane: tl.constexpr):
    """The pages of tokens; none, -1, of those from `length` on."""
    return tl.load(table + token // plane.page_tokens, mask=token < length, other=-1)


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
    page = (tl.maximum(number, 0) if is_masked else number).to(tl.int64)
    words = pages.to(tl.pointer_type(tl.int32)) + plane.offset // 4 + head * (plane.head_nbytes // 4)
    row = token % plane.page_tokens // count
    places = (page * (shape.page_nbytes // 4) + row * plane.lanes)[:, None] + lane.to(tl.int64)[None, :]
    if plane.lanes % 4 == 0:
        places = tl.max_contiguous(tl.multiple_of(places, (1, 4)), (1, 4))
    if plane.block_lanes > plane.lanes:
        packed = tl.load(words + places, mask=lane[None, :] < plane.lanes, other=0)
    else:
        packed = tl.load(words + places)
    if is_masked:
        packed = packed & _kept_bits(length - token, number, count)[:, None]
    tiles = ()
    if plane.is_int4:
        low = _value_levels(pages, page, row, head, 0, shape)
        high = _value_levels(pages, page, row, head, 1, shape)
        for index in tl.static_range(4):
            tiles += (_value_nibble(packed, low, index, 0, shape), _value_nibble(packed, high, index, 1, shape))
    else:
        for index in tl.static_range(count):
            tiles += (_number_of(packed, index, plane, dtype),)
    return tiles


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
    rows = (page * (shape.page_nbytes // 4) + row)[:, None]
    return tl.load(words + (rows + places[None, :]), mask=(group < plane.half_groups)[None, :], other=0)


@triton.jit
def _value_nibble(packed, levels, index: tl.constexpr, half: tl.constexpr, shape: tl.constexpr):
    zeros, steps = _levels_of(levels >> (8 * index))
    dtype: tl.constexpr = shape.value_dot
    columns: tl.constexpr = shape.values.block_lanes
    spread = (_spread_columns(zeros, columns), _spread_columns(steps, columns))
    return _nibble_of(packed, spread, index, half, dtype)


@triton.jit
def scales_of(pages, page, slot, head, is_key: tl.constexpr, shape: tl.constexpr):
    """The scales of tokens, fp32."""
    plane: tl.constexpr = shape.keys if is_key else shape.values
    scales = pages.to(tl.pointer_type(tl.bfloat16))
    start = (plane.offset + plane.scales_offset) // 2 + head * (plane.head_nbytes // 2)
    places = tl.max_contiguous(tl.multiple_of(page * (shape.page_nbytes // 2) + slot, 16), 16)
    return tl.load(scales + start + places).to(tl.float32)


@triton.jit
def channels_of(lane, half: tl.constexpr, plane: tl.constexpr):
    """Which channels are in `half` of lanes, and whether there are such."""
    return half * plane.lanes + lane, lane < plane.lanes
