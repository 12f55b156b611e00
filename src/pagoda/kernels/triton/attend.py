"""Attention of blocks of query rows over the pages of their sequence, in one pass over the tokens in their reach.

A block is so many rows, times heads that share a KV head, of one sequence. It meets the pages of one split: a fixed
number of whole pages, so that a row's bits depend on nothing but its own tokens. Scores are in units of log 2. Of rows
that one split has all of, a program writes results; of others sums, largest scores and weighted values, which reduce.py
adds up.
"""

import triton
import triton.language as tl

from pagoda.kernels.triton.decode import channels_of, value_words
from pagoda.kernels.triton.search import sequence_of
from pagoda.kernels.triton.softmax import add_tile, beside_tile
from pagoda.kernels.triton.tables import (
    ancestors_of,
    num_tokens_of,
    numbers_of,
    places_of,
    position_of,
    split_starts_of,
    table_of,
)

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["layer", "num_sequences", "most_rows"])
def attend_few(
    query, results, pages, tables, extras, query_strides, layer, num_sequences, most_rows, shape: tl.constexpr
):  # fmt: skip
    """Sequences of up to `most_rows` rows: programs take split after split of all of them, as far as there are any."""
    page_starts, query_starts = split_starts_of(tables, shape), tables[2]
    blocks = (most_rows * shape.group + shape.tile.rows - 1) // shape.tile.rows
    num_splits = tl.load(page_starts + num_sequences) // shape.split_pages + num_sequences
    for item in range(tl.program_id(0), num_splits * shape.num_kv_heads * blocks, tl.num_programs(0)):
        head = item % shape.num_kv_heads
        rest = item // shape.num_kv_heads
        block = rest % blocks
        place = rest // blocks
        unit: tl.constexpr = shape.split_pages
        sequence = sequence_of(page_starts, place, num_sequences, 1, unit, 1)
        first_row = tl.load(query_starts + sequence)
        num_rows = tl.load(query_starts + sequence + 1) - first_row
        if (num_rows <= most_rows) & (block * shape.tile.rows < num_rows * shape.group):
            first_page = tl.load(page_starts + sequence)
            split = place - (first_page // shape.split_pages + sequence)
            flat = block * shape.tile.rows + tl.arange(0, shape.tile.rows)
            row = flat // shape.group
            heads = head * shape.group + flat % shape.group
            slots = (place.to(tl.int64) * most_rows + row) * shape.heads + heads
            _attend_split(
                query, results, pages, tables, extras, query_strides, layer,
                sequence, split, head, row, heads, row < num_rows, slots, shape,
            )  # fmt: skip


@triton.jit(do_not_specialize=["layer", "num_sequences", "few_rows", "first_row", "last_row", "num_splits"])
def attend_many(
    query, results, pages, tables, extras, query_strides, layer, num_sequences, few_rows,
    first_row, last_row, num_splits, shape: tl.constexpr
):  # fmt: skip
    """Sequences of more than `few_rows` rows, of which those in [first_row, last_row) of the batch are computed.

    Long contexts come first: the last blocks of rows.
    """
    query_starts = tables[2]
    place = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    group: tl.constexpr = shape.group
    unit: tl.constexpr = shape.tile.rows
    sequence = sequence_of(query_starts, place, num_sequences, group, unit, 1)
    start = tl.load(query_starts + sequence)
    num_rows = tl.load(query_starts + sequence + 1) - start
    block = place - (start * shape.group // shape.tile.rows + sequence)
    flat = block * shape.tile.rows + tl.arange(0, shape.tile.rows)
    row = flat // shape.group
    heads = head * shape.group + flat % shape.group
    first_of_block = start + block * shape.tile.rows // shape.group
    last_of_block = start + (block * shape.tile.rows + shape.tile.rows - 1) // shape.group
    is_here = (first_of_block < last_row) & (last_of_block >= first_row)
    if (num_rows > few_rows) & (block * shape.tile.rows < num_rows * shape.group) & is_here:
        is_valid = (row < num_rows) & (start + row >= first_row) & (start + row < last_row)
        slots = ((start + row - first_row).to(tl.int64) * shape.heads + heads) * num_splits + split
        _attend_split(
            query, results, pages, tables, extras, query_strides, layer,
            sequence, split, head, row, heads, is_valid, slots, shape,
        )  # fmt: skip


@triton.jit
def _attend_split(
    query, results, pages, tables, extras, query_strides, layer,
    sequence, split, head, row, heads, is_valid, slots, shape: tl.constexpr
):  # fmt: skip
    """One split for one block: `row` [rows] of the sequence, `heads` of it.

    What comes of it goes to `slots` of the second and the third of `results`, or if that is all, to the first.
    """
    length = num_tokens_of(tables, layer, sequence, head, shape)
    first_row = tl.load(tables[2] + sequence)
    num_rows = tl.load(tables[2] + sequence + 1) - first_row
    table, cells = table_of(tables, layer, sequence, head, shape)
    places = places_of(tables, sequence, first_row, shape)
    position = position_of(places, row, length, num_rows, shape)
    first, last = _reach_of(position, is_valid, places, length, shape)
    tile_tokens: tl.constexpr = shape.tile.tokens
    start = split * shape.split_tokens
    end = start + shape.split_tokens
    first = tl.maximum(first // tile_tokens * tile_tokens, start)
    last = tl.minimum(last, end)
    begin = first
    if shape.rule.sink_tokens > 0:
        # Tiles of the first tokens come before those in reach, as if they lay side by side.
        last = tl.maximum(first, last)
        num_sinks = tl.maximum(tl.minimum(tl.minimum(first, end), shape.rule.sink_tokens) - start, 0)
        begin -= tl.cdiv(num_sinks, tile_tokens) * tile_tokens
    if begin < last:
        own_head = 0 if shape.has_cells else head
        if shape.has_cells:
            pages -= layer.to(tl.int64) * shape.layer_nbytes
        own = query + (first_row + row).to(tl.int64)[:, None] * query_strides[0] + heads[:, None] * query_strides[1]
        queries, units = _queries_of(own, is_valid, shape)
        lifts, turns = _lifts(extras, first_row + row, heads, head, is_valid, shape)
        ancestors = ancestors_of(tables, first_row + row, first_row + num_rows, shape)
        owner = (position, heads, head, row, cells if shape.has_choice else places, ancestors)
        rows = (queries, units, lifts, turns, owner)
        listed = (table, cells, own_head)
        summed = _no_sums(shape)
        whole = begin
        if not shape.has_edge:
            whole = tl.maximum(begin, tl.minimum(last, _unmasked(position, is_valid, places, length, shape)))
            summed = _add_whole(summed, rows, pages, listed, extras, begin, whole, length, shape)
        if whole < last:
            summed = _add_masked(summed, rows, pages, listed, extras, (begin, first, start), whole, last, length, shape)
        have_one, its_split = _have_one_split(position, places, length, shape)
        own_slots = (first_row + row).to(tl.int64) * shape.heads + heads
        is_whole = is_valid & have_one & (its_split == split)
        is_part = is_valid & (have_one == 0)
        _store_split(results, summed, extras, heads, (own_slots, slots), is_whole, is_part, shape)


@triton.jit
def _add_whole(summed, rows, pages, listed, extras, begin, end, length, shape: tl.constexpr):
    """Tiles of which all rows see all tokens."""
    table, cells, head = listed[0], listed[1], listed[2]
    numbers = _numbers_at(table, cells, begin, length, shape)
    beside = beside_tile(pages, numbers, begin, head, shape)
    for token in tl.range(begin, end, shape.tile.tokens):
        after = token + shape.tile.tokens
        following = _numbers_at(table, cells, after, length, shape)
        if shape.asks_ahead:
            beside_following = beside_tile(pages, following, after, head, shape)
            summed = add_tile(summed, rows, pages, numbers, beside, extras, token, length, False, shape)
            beside = beside_following
        else:
            beside = beside_tile(pages, numbers, token, head, shape)
            summed = add_tile(summed, rows, pages, numbers, beside, extras, token, length, False, shape)
        numbers = following
    return summed


@triton.jit
def _add_masked(summed, rows, pages, listed, extras, jump, begin, end, length, shape: tl.constexpr):
    """Tiles at the ends of what rows see. They are in places of their split; `jump` says where that are tokens."""
    table, cells, head = listed[0], listed[1], listed[2]
    numbers = _numbers_at(table, cells, _token_at(begin, jump, shape), length, shape)
    for place in tl.range(begin, end, shape.tile.tokens):
        token = _token_at(place, jump, shape)
        following = _numbers_at(table, cells, _token_at(place + shape.tile.tokens, jump, shape), length, shape)
        beside = beside_tile(pages, numbers, token, head, shape)
        summed = add_tile(summed, rows, pages, numbers, beside, extras, token, length, True, shape)
        numbers = following
    return summed


@triton.jit
def _store_split(results, summed, extras, heads, slots, is_whole, is_part, shape: tl.constexpr):
    """Results of rows that are done, and of the others what has been `summed`: largest scores, weights, values."""
    largest, total, sums = summed[0], summed[1], summed[2]
    if tl.max(is_whole.to(tl.int32), axis=0) > 0:
        has_sinks: tl.constexpr = shape.rule.has_sinks
        factor, _ = finished(largest, total, extras[0], heads, is_whole, has_sinks)
        _store_sums(results[0], slots[0], sums, factor, is_whole, shape)
    if tl.max(is_part.to(tl.int32), axis=0) > 0:
        tl.store(results[2] + slots[1] * 2, largest, mask=is_part)
        tl.store(results[2] + slots[1] * 2 + 1, total, mask=is_part)
        _store_sums(results[1], slots[1], sums, tl.full([shape.tile.rows], 1.0, tl.float32), is_part, shape)


@triton.jit
def _token_at(place, jump, shape: tl.constexpr):
    """The token of a place of a split. A `jump` is where places begin, from where on these are tokens, and the split.

    Places before that are the first tokens of the split.
    """
    if shape.rule.sink_tokens > 0:
        return tl.where(place < jump[1], place - jump[0] + jump[2], place)
    else:
        return place


@triton.jit
def splits_of(position, places, length, shape: tl.constexpr):
    """The first and the last split that a row at `position` reaches, but for those of `num_sink_splits`."""
    last = (position * 0 + length - 1 if shape.sees_all else position) // shape.split_tokens
    return _nearest(position, places, shape) // shape.split_tokens, last


@triton.jit
def num_sink_splits(shape: tl.constexpr):
    """How many splits have tokens that stay in reach before all others."""
    return (shape.rule.sink_tokens + shape.split_tokens - 1) // shape.split_tokens


@triton.jit
def are_in_one(first, last, shape: tl.constexpr):
    """Whether rows that reach splits `first` to `last` are done with one."""
    if shape.rule.sink_tokens > 0:
        return last == 0
    else:
        return first == last


@triton.jit
def _have_one_split(position, places, length, shape: tl.constexpr):
    """Which rows are done with one split, and which that is: none whose results reduce.py turns back."""
    first, last = splits_of(position, places, length, shape)
    return are_in_one(first, last, shape) & (not shape.turns_results), first


@triton.jit
def _nearest(position, places, shape: tl.constexpr):
    """The first slot that a row at `position` reaches: new rows that it sees may lie before those of its window."""
    if shape.rule.reach == "sliding":
        slot = tl.maximum(position - shape.rule.span + 1, 0)
    elif shape.rule.reach == "chunked":
        slot = position // shape.rule.span * shape.rule.span
    else:
        slot = position * 0
    return tl.minimum(slot, places[0]) if shape.has_places else slot


@triton.jit
def _reach_of(position, is_valid, places, length, shape: tl.constexpr):
    """The slots that rows reach: the first, and the one behind the last."""
    nearest = tl.min(tl.where(is_valid, position, length), axis=0)
    if shape.sees_all:
        return _nearest(nearest, places, shape), length
    else:
        return _nearest(nearest, places, shape), tl.max(tl.where(is_valid, position, -1), axis=0) + 1


@triton.jit
def _unmasked(position, is_valid, places, length, shape: tl.constexpr):
    """Before which token, the first of a tile, all rows see all."""
    if shape.has_places:
        end = places[0]
    elif shape.rule.reach == "encoder":
        end = length
    else:
        end = tl.min(tl.where(is_valid, position, length), axis=0) + 1
    return end // shape.tile.tokens * shape.tile.tokens


@triton.jit
def _queries_of(own, is_valid, shape: tl.constexpr):
    """Queries as tiles [rows, channels], one for each tile of keys, and what they are divided by, row by row.

    Zeros where there are no rows or channels.
    """
    plane: tl.constexpr = shape.keys
    parts: tl.constexpr = shape.num_parts
    count: tl.constexpr = plane.tiles
    numbers = ()
    largest = tl.full([shape.tile.rows], 0.0, tl.float32)
    for part in tl.static_range(parts):
        sizes = tl.full([shape.tile.rows, plane.parts[part].rows], 0.0, tl.float32)
        for index in tl.static_range(count):
            channel, exists = key_channels(part, index, plane)
            tile = tl.load(own + channel[None, :], mask=is_valid[:, None] & exists[None, :], other=0.0)
            numbers += (tile,)
            sizes = tl.maximum(sizes, tl.abs(tile.to(tl.float32)))
        if shape.scales_queries:
            largest = tl.maximum(largest, tl.max(sizes, axis=1))
    units, shares = _units_of(largest)
    tiles = ()
    for index in tl.static_range(parts * count):
        if shape.scales_queries:
            tiles += ((numbers[index].to(tl.float32) * shares[:, None]).to(shape.key_dot),)
        else:
            tiles += (numbers[index].to(shape.key_dot),)
    return tiles, units


@triton.jit
def _units_of(largest):
    """The power of two next below a number, and one by it; both are numbers in fp32 whatever that number is."""
    bits = largest.to(tl.int32, bitcast=True) & 0x7F800000
    bits = tl.minimum(tl.maximum(bits, 0x00800000), 0x7E800000)
    return bits.to(tl.float32, bitcast=True), (0x7F000000 - bits).to(tl.float32, bitcast=True)


@triton.jit
def key_channels(part: tl.constexpr, index: tl.constexpr, plane: tl.constexpr):
    """The channels of tile number `index` of a part of keys, and whether there are such."""
    word = plane.parts[part].first + tl.arange(0, plane.parts[part].rows)
    half: tl.constexpr = index % plane.halves
    return channels_of(word * plane.count + index // plane.halves, half, plane)


@triton.jit
def _no_sums(shape: tl.constexpr):
    """Largest scores, sums of weights, and of values, before any are added.

    The last are as many tiles as keys have if they are values too, else one for a half.
    """
    largest = tl.full([shape.tile.rows], float("-inf"), tl.float32)
    total = tl.full([shape.tile.rows], 0.0, tl.float32)
    sums = ()
    if shape.has_latents:
        for part in tl.static_range(tl.constexpr(shape.num_parts)):
            for _ in tl.static_range(tl.constexpr(shape.keys.tiles)):
                sums += (tl.full([shape.tile.rows, shape.keys.parts[part].rows], 0.0, tl.float32),)
    else:
        for _ in tl.static_range(tl.constexpr(shape.values.halves)):
            sums += (tl.full([shape.tile.rows, shape.values.block_lanes], 0.0, tl.float32),)
    return largest, total, sums


@triton.jit
def _lifts(extras, row, heads, head, is_valid, shape: tl.constexpr):
    """What queries make of the pairs that keys have in common, and where the turns of those pairs are kept."""
    if shape.has_constants:
        index = tl.arange(0, 32)
        places = (row.to(tl.int64) * shape.heads + heads)[:, None] * 32 + index[None, :]
        lifts = tl.load(extras[3] + places, mask=is_valid[:, None], other=0.0)
        pair = index % 16
        turn = tl.load(extras[4] + (head * shape.num_pairs + pair) * 3 + 2, mask=pair < shape.num_pairs, other=0)
        return lifts, (turn * 2 + index // 16) * shape.turn_pages
    else:
        return 0.0, 0


@triton.jit
def _numbers_at(table, cells, first, length, shape: tl.constexpr):
    """Pages of a tile, by token and by word of values: asked for a tile before they are needed."""
    by_token = numbers_of(table, cells, first + tl.arange(0, shape.tile.tokens), length, shape)
    if shape.has_latents:
        return by_token, by_token
    else:
        return by_token, numbers_of(table, cells, first + shape.values.count * value_words(shape), length, shape)


@triton.jit
def finished(largest, total, sinks, heads, is_valid, has_sinks: tl.constexpr):
    """What sums are multiplied by once the sinks of `heads` have their weight; and the share that tokens have."""
    if has_sinks:
        sink = tl.load(sinks + heads, mask=is_valid, other=0.0) * LOG2_E
        highest = tl.maximum(largest, sink)
        fade = tl.exp2(largest - highest)
        whole = total * fade + tl.exp2(sink - highest)
        return fade / whole, total * fade / whole
    else:
        return 1.0 / total, total / total


@triton.jit
def _store_sums(out, slots, sums, factor, is_valid, shape: tl.constexpr):
    plane: tl.constexpr = shape.keys if shape.has_latents else shape.values
    if shape.has_latents:
        for part in tl.static_range(tl.constexpr(shape.num_parts)):
            for index in tl.static_range(tl.constexpr(plane.tiles)):
                channel, exists = key_channels(part, index, plane)
                tile = sums[part * plane.tiles + index] * factor[:, None]
                _store_rows(out, slots, tile, channel, exists, is_valid, shape)
    else:
        for half in tl.static_range(tl.constexpr(plane.halves)):
            channel, exists = channels_of(tl.arange(0, plane.block_lanes), half, plane)
            _store_rows(out, slots, sums[half] * factor[:, None], channel, exists, is_valid, shape)


@triton.jit
def _store_rows(out, slots, rows, channel, exists, is_valid, shape: tl.constexpr):
    mask = is_valid[:, None] & (exists & (channel < shape.value_width))[None, :]
    tl.store(out + slots[:, None] * shape.value_width + channel[None, :], rows, mask=mask)
