"""From the words of a coded weight to numbers, in registers, and products with few rows of input.

Knows how csrc/coding.h lays codes: a word has four neighbours in depth of a row, its step, so that there is a tile of
numbers, and a product, for each of the four. Numbers are those of `CodedWeight.decode`, to the bit.
"""

import triton
import triton.language as tl

# The codes of IQ4_NL (kCodeTable of csrc/coding.h), the lower eight and the upper, from the lowest byte on.
LOWER_CODES = tl.constexpr(0x766A5D4F3F2D1801)
UPPER_CODES = tl.constexpr(0xF1D9C5B5A6998D81 - (1 << 64))


@triton.jit
def decode_tile(
    data, numbers, out, count, first, rows, shape: tl.constexpr, is_listed: tl.constexpr, tile: tl.constexpr
):
    """A program writes the weights of some rows and of some depth to `out` [count, depth].

    Rows are those in `numbers` if `is_listed`, or follow `first`, which is in whole blocks; others than there are give
    zeros.
    """
    item = tl.program_id(0).to(tl.int64) * tile.columns + tl.arange(0, tile.columns)
    row = first + item
    if is_listed:
        row = tl.load(numbers + item, mask=item < count, other=-1).to(tl.int64)
    step = tl.program_id(1) * tile.steps + tl.arange(0, tile.steps)
    dtype: tl.constexpr = out.dtype.element_ty
    tiles = _weight_tiles(
        data, row, step, (row >= 0) & (row < rows) & (item < count), shape, not is_listed, True, dtype
    )
    weights = tl.interleave(tl.interleave(tiles[0], tiles[2]), tl.interleave(tiles[1], tiles[3]))
    place = tl.program_id(1) * (tile.steps * 4) + tl.arange(0, tile.steps * 4)
    mask = (item < count)[:, None] & (place < shape.depth)[None, :]
    tl.store(out + item[:, None] * shape.depth + place[None, :], weights, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def multiply_few(
    input, data, bias, out, row_stride, num_rows, columns, has_bias: tl.constexpr, shape: tl.constexpr,
    tile: tl.constexpr
):  # fmt: skip
    """A program takes some rows of input through the columns and the split that `_multiply_rows` says."""
    row = tl.program_id(0) * tile.rows + tl.arange(0, tile.rows)
    rows = input + row.to(tl.int64) * row_stride
    _multiply_rows(rows, row, row < num_rows, data, True, bias, out, num_rows, columns, has_bias, shape, tile)


@triton.jit(do_not_specialize=["num_pairs", "num_matrices"])
def multiply_routed(
    input, data, bias, out, pairs, owners, row_stride, per_row, matrix_nbytes, num_pairs, num_matrices, columns,
    has_bias: tl.constexpr, shape: tl.constexpr, tile: tl.constexpr
):  # fmt: skip
    """The same of one block of `Routing`, whose rows meet one of many matrices, and `bias` [matrices, columns].

    A row has `per_row` pairs, of which each has a row of results. They are zeros where there is no such matrix.
    """
    block = tl.program_id(0)
    pair = tl.load(pairs + block * tile.rows + tl.arange(0, tile.rows))
    owner = tl.load(owners + block).to(tl.int64)
    if tl.min(pair, axis=0) < num_pairs:
        rows = input + (pair // per_row).to(tl.int64) * row_stride
        _multiply_rows(
            rows, pair, pair < num_pairs, data + owner * matrix_nbytes, owner < num_matrices, bias + owner * columns,
            out, num_pairs, columns, has_bias, shape, tile,
        )  # fmt: skip


@triton.jit
def _multiply_rows(
    rows, place, is_row, data, is_matrix, bias, out, num_rows, columns, has_bias: tl.constexpr, shape: tl.constexpr,
    tile: tl.constexpr
):  # fmt: skip
    """Some rows, at `rows`, meet some columns in one split of depth, for rows `place` of `out` [splits, rows, columns].

    Columns are those of the second axis of the grid, and splits of the third, of which the first has the bias. Depth is
    gone through in one order whatever the rows are, so that those of a row have the same bits in every batch.
    """
    column = tl.program_id(1).to(tl.int64) * tile.columns + tl.arange(0, tile.columns)
    split = tl.program_id(2)
    first = split * tile.split_tiles
    is_column = column < columns
    dtype: tl.constexpr = rows.dtype.element_ty
    tile_rows: tl.constexpr = tile.rows
    tile_columns: tl.constexpr = tile.columns
    sums = tl.zeros((tile_rows, tile_columns), tl.float32)
    for index in range(first, tl.minimum(first + tile.split_tiles, shape.num_tiles(tile.steps))):
        along = index * (tile.steps * 4) + tl.arange(0, tile.steps * 4)
        mask = is_row[:, None] & (along < shape.depth)[None, :]
        numbers = tl.load(rows[:, None] + along[None, :], mask=mask, other=0.0)
        even, odd = _halves_of(numbers)
        zeroth, second = _halves_of(even)
        one, third = _halves_of(odd)
        step = index * tile.steps + tl.arange(0, tile.steps)
        tiles = _weight_tiles(data, column, step, is_column & is_matrix, shape, True, False, dtype)
        sums = tl.dot(zeroth, tiles[0], sums, input_precision="ieee")
        sums = tl.dot(one, tiles[1], sums, input_precision="ieee")
        sums = tl.dot(second, tiles[2], sums, input_precision="ieee")
        sums = tl.dot(third, tiles[3], sums, input_precision="ieee")
    if has_bias:
        added = tl.load(bias + column, mask=is_column & is_matrix & (split == 0), other=0.0)
        sums += added.to(tl.float32)[None, :]
    places = (split.to(tl.int64) * num_rows + place)[:, None] * columns + column[None, :]
    tl.store(out + places, sums.to(out.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


@triton.jit(do_not_specialize=["num_rows"])
def add_splits(partial, out, num_rows, columns, num_splits: tl.constexpr, block: tl.constexpr):
    """A program adds up some columns of a row, split after split."""
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * block + tl.arange(0, block)
    exists = column < columns
    total = tl.zeros((block,), tl.float32)
    for split in range(num_splits):
        total += tl.load(partial + (split * num_rows + row) * columns + column, mask=exists, other=0.0)
    tl.store(out + row * columns + column, total.to(out.dtype.element_ty), mask=exists)


@triton.jit
def _weight_tiles(
    data,
    row,
    step,
    exists,
    shape: tl.constexpr,
    is_run: tl.constexpr,
    has_rows_first: tl.constexpr,
    dtype: tl.constexpr,
):
    """Weights of rows and steps, a tile for each number of a step: [rows, steps] if `has_rows_first`, or [steps, rows].

    Rows, int64, lie side by side from a whole block on if they are a run. Of rows that are not in `exists`, and beyond
    the depth, they are zeros, or what the last unit is filled up with.
    """
    unit, own = step // 8, step % 8
    superunit = unit // shape.superunit
    head = superunit * shape.superunit_nbytes
    parts = unit * shape.unit_nbytes + (superunit + 1) * shape.head_nbytes
    codes = (parts + shape.parts_nbytes) // 4
    is_there = _across(exists, has_rows_first) & _along(unit < shape.num_units, has_rows_first)
    words = data.to(tl.pointer_type(tl.int32)) + _across(_places(row, shape, 4, is_run), has_rows_first)
    packed = _codes(words, codes, own, is_there, shape, has_rows_first)

    scale_nbytes: tl.constexpr = shape.scale_nbytes
    heads = data.to(tl.pointer_type(tl.float16 if scale_nbytes == 2 else tl.float32))
    heads += _across(_places(row, shape, scale_nbytes, is_run), has_rows_first)
    head = _along(head // scale_nbytes, has_rows_first)
    scale = tl.load(heads + head, mask=is_there, other=0.0).to(tl.float32)
    octets = data.to(tl.pointer_type(tl.int8)) + _across(_places(row, shape, 1, is_run), has_rows_first)
    minimum = scale
    if shape.has_zeros:
        minimum *= _part(octets, parts, is_there, has_rows_first)
    elif shape.has_minimum:
        minimum = tl.load(heads + (head + 16), mask=is_there, other=0.0).to(tl.float32)
    if shape.num_parts > 0:
        part = parts + own * shape.num_parts // 8 * 16
        scale *= _part(octets, part, is_there, has_rows_first)
        if shape.has_minimum:
            minimum *= _part(octets, part + shape.num_parts * 16, is_there, has_rows_first)

    tiles = ()
    for number in tl.static_range(4):
        code = (packed >> (8 * number)) & 0xFF
        if shape.has_table:
            eight = tl.where(code < 8, LOWER_CODES, UPPER_CODES)
            code = ((eight >> ((code & 7) * 8).to(tl.int64)) & 0xFF).to(tl.int32)
        weight = scale * (code - shape.zero).to(tl.float32)
        if shape.has_minimum:
            weight -= minimum
        tiles += (weight.to(dtype),)
    return tiles


@triton.jit
def _codes(words, start, own, is_there, shape: tl.constexpr, has_rows_first: tl.constexpr):
    """The four codes of steps, a byte each, of units whose codes begin at `start`; `own` is the step of its unit."""
    if shape.bits == 8:
        return tl.load(words + _along(start + own * 16, has_rows_first), mask=is_there, other=0)
    low_bits: tl.constexpr = 2 if shape.bits < 4 else 4
    codes = _bits(words, start, own, low_bits, is_there, has_rows_first)
    if shape.bits != low_bits:
        high = _bits(words, start + low_bits * 16, own, shape.bits - low_bits, is_there, has_rows_first)
        codes |= high << low_bits
    return codes


@triton.jit
def _bits(words, start, own, width: tl.constexpr, is_there, has_rows_first: tl.constexpr):
    """So many bits of each code: nibbles in four planes, pairs in two, single ones in one."""
    if width == 4:
        plane, shift, mask = own % 4, own // 4 * 4, 0x0F0F0F0F
    elif width == 2:
        plane, shift, mask = own // 4, own % 4 * 2, 0x03030303
    else:
        plane, shift, mask = own * 0, own, 0x01010101
    packed = tl.load(words + _along(start + plane * 16, has_rows_first), mask=is_there, other=0)
    return (packed >> _along(shift, has_rows_first)) & mask


@triton.jit
def _part(octets, place, is_there, has_rows_first: tl.constexpr):
    return tl.load(octets + _along(place, has_rows_first), mask=is_there, other=0).to(tl.float32)


@triton.jit
def _places(row, shape: tl.constexpr, nbytes: tl.constexpr, is_run: tl.constexpr):
    """Where the first of a block's numbers of `nbytes` are, for each row: those of 16 lie side by side."""
    places = row // 16 * (shape.block_nbytes // nbytes) + row % 16
    if is_run:
        places = tl.max_contiguous(tl.multiple_of(places, 16 // nbytes), 16)
    return places


@triton.jit
def _across(of_rows, has_rows_first: tl.constexpr):
    return of_rows[:, None] if has_rows_first else of_rows[None, :]


@triton.jit
def _along(of_steps, has_rows_first: tl.constexpr):
    return of_steps[None, :] if has_rows_first else of_steps[:, None]


@triton.jit
def _halves_of(tile):
    """The even and the odd columns."""
    rows: tl.constexpr = tile.shape[0]
    columns: tl.constexpr = tile.shape[1]
    return tl.split(tl.reshape(tile, (rows, columns // 2, 2)))
