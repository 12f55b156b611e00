"""Which pages a row reads that reads some only (Quest, arXiv 2406.10774): bounds of its scores, and the best of them.

What bounds the scores of a page is made where it is first asked for. Of equal bounds the earlier pages are chosen.
"""

import triton
import triton.language as tl

from pagoda.kernels.triton.attend import key_channels
from pagoda.kernels.triton.decode import key_levels, key_tiles, scales_of
from pagoda.kernels.triton.search import sequence_of

LEAST = tl.constexpr(-0x80000000)
# Numbers behind a summary that are zeros: fewer than that.
REST = tl.constexpr(32)


@triton.jit(do_not_specialize=["layer", "num_sequences"])
def rest_of(lengths, readings, rest, layer, num_sequences, block: tl.constexpr):
    """The lengths of sequences that read all of their pages in a layer; of the others none."""
    sequence = tl.program_id(0) * block + tl.arange(0, block)
    exists = sequence < num_sequences
    most_pages = tl.load(readings + sequence * 2, mask=exists, other=0)
    first_layer = tl.load(readings + sequence * 2 + 1, mask=exists, other=0)
    length = tl.load(lengths + sequence, mask=exists, other=0)
    tl.store(rest + sequence, tl.where((most_pages > 0) & (layer >= first_layer), 0, length), mask=exists)


@triton.jit(do_not_specialize=["layer", "num_sequences", "first", "last", "first_row", "num_entries"])
def bound_pages(
    query, bounds, pages, tables, readings, summaries, extras, query_strides, layer, num_sequences,
    first, last, first_row, most_rows: tl.constexpr, num_entries,
    block: tl.constexpr, summary_numbers: tl.constexpr, shape: tl.constexpr
):  # fmt: skip
    """How high scores can be in a block of pages: of `most_rows` rows from `first_row` of each sequence that chooses.

    Rows of the batch before `first` and from `last` on are left out. `bounds` fp32 [rows, KV heads, pages of all
    sequences]: the highest of the heads that share a KV head.
    """
    head = tl.program_id(1)
    place = tl.program_id(0)
    sequence = sequence_of(tables[1], place, num_sequences, 1, block, 1)
    first_page = tl.load(tables[1] + sequence)
    number = (place - (first_page // block + sequence)) * block + tl.arange(0, block)
    start = tl.load(tables[2] + sequence)
    num_rows = tl.load(tables[2] + sequence + 1) - start
    begin = tl.maximum(first_row, first - start)
    end = tl.minimum(tl.minimum(num_rows, first_row + most_rows), last - start)
    length = tl.load(tables[3] + sequence)
    open_page = (length - 1) // shape.keys.page_tokens
    table = tables[0] + first_page
    if _chooses(readings, sequence, open_page + 1, layer) & (begin < end):
        is_between = (number > 0) & (number < open_page)
        page = tl.load(table + number, mask=is_between, other=0)
        is_made = tl.load(summaries[1] + page, mask=is_between, other=1)
        if tl.min(is_made.to(tl.int32), axis=0) == 0:
            for index in tl.range(0, block):
                one = tl.min(number, axis=0) + index
                if (one > 0) & (one < open_page):
                    _summarise(pages, tl.load(table + one), summaries, head, summary_numbers, shape)
            tl.debug_barrier()
        channel = tl.arange(0, shape.keys.row_width)
        exists = is_between[:, None] & (channel < shape.keys.width)[None, :]
        numbers = summaries[0] + (page.to(tl.int64) * shape.num_kv_heads + head)[:, None] * summary_numbers
        highest = tl.load(numbers + channel[None, :], mask=exists, other=0.0).to(tl.float32)
        lowest = tl.load(numbers + shape.keys.width + channel[None, :], mask=exists, other=0.0).to(tl.float32)
        for row in tl.range(begin, end):
            bound = tl.full([block], float("-inf"), tl.float32)
            for index in tl.range(0, shape.group):
                own_head = head * shape.group + index
                own = query + (start + row).to(tl.int64) * query_strides[0] + own_head * query_strides[1]
                values = tl.load(own + channel, mask=channel < shape.keys.width, other=0.0).to(tl.float32)
                products = tl.maximum(values, 0.0)[None, :] * highest + tl.minimum(values, 0.0)[None, :] * lowest
                sums = tl.sum(products, axis=1)
                if shape.has_constants:
                    sums += _lifted(extras, (start + row).to(tl.int64) * shape.heads + own_head, head, number, shape)
                bound = tl.maximum(bound, sums)
            places = ((row - first_row).to(tl.int64) * shape.num_kv_heads + head) * num_entries + first_page + number
            tl.store(bounds + places, bound, mask=is_between)


@triton.jit(do_not_specialize=["layer", "num_sequences", "first", "first_row", "num_entries", "most_pages"])
def choose_pages(
    bounds, chosen, tables, readings, is_made, layer, num_sequences,
    first, first_row, most_rows: tl.constexpr, num_entries, most_pages, block: tl.constexpr, shape: tl.constexpr
):  # fmt: skip
    """The pages that a row reads for a KV head, in the order of their tokens, of rows that have `bounds`.

    `chosen` are pages, and which of their sequence these are, int32 [rows, KV heads, most_pages], and how many tokens
    they have, int32 [rows], of rows of the batch from `first` on.
    """
    row = first + tl.program_id(0)
    head = tl.program_id(1)
    sequence = sequence_of(tables[2], row, num_sequences, 1, 1, 0)
    start = tl.load(tables[2] + sequence)
    end = tl.load(tables[2] + sequence + 1)
    own_row = row - start
    length = tl.load(tables[3] + sequence) - end + row + 1
    num_pages = (length + shape.keys.page_tokens - 1) // shape.keys.page_tokens
    is_here = (row < end) & (own_row >= first_row) & (own_row < first_row + most_rows)
    budget = tl.load(readings + sequence * 2)
    if is_here & (budget > 0) & (layer >= tl.load(readings + sequence * 2 + 1)):
        first_page = tl.load(tables[1] + sequence)
        table = tables[0] + first_page
        place = (tl.program_id(0).to(tl.int64) * shape.num_kv_heads + head) * most_pages
        count = tl.minimum(num_pages, budget)
        own = bounds + ((own_row - first_row).to(tl.int64) * shape.num_kv_heads + head) * num_entries + first_page
        least = LEAST
        num_equal = 0
        if count < num_pages:
            least, num_equal = _least_of(own, num_pages, count - 2, block)
        num_taken = 0
        for start_page in tl.range(0, num_pages, block):
            number = start_page + tl.arange(0, block)
            is_between = (number > 0) & (number < num_pages - 1)
            order = _order_of(own, number, is_between)
            is_equal = (is_between & (order == least)).to(tl.int32)
            is_taken = (is_between & (order > least)) | ((is_equal > 0) & (tl.cumsum(is_equal, axis=0) <= num_equal))
            is_taken = (
                is_taken | (number == 0) | (number == num_pages - 1) | ((number < num_pages) & (count == num_pages))
            )
            num_equal -= tl.sum(is_equal, axis=0)
            is_one = is_taken.to(tl.int32)
            where = place + num_taken + tl.cumsum(is_one, axis=0) - 1
            page = tl.load(table + number, mask=is_taken, other=0)
            tl.store(chosen[0] + where, page, mask=is_taken)
            tl.store(chosen[1] + where, number, mask=is_taken)
            num_taken += tl.sum(is_one, axis=0)
            if (head == 0) & (count < num_pages):
                between = tl.load(table + number, mask=is_between, other=0)
                tl.store(is_made + between, (number * 0 + 1).to(tl.uint8), mask=is_between)
        tl.store(chosen[2] + tl.program_id(0), length - (num_pages - count) * shape.keys.page_tokens)


@triton.jit
def _chooses(readings, sequence, num_pages, layer):
    """Whether rows of a sequence with so many pages leave some of them."""
    most_pages = tl.load(readings + sequence * 2)
    return (most_pages > 0) & (num_pages > most_pages) & (layer >= tl.load(readings + sequence * 2 + 1))


@triton.jit
def _summarise(pages, page, summaries, head, summary_numbers: tl.constexpr, shape: tl.constexpr):
    """The largest and the smallest number of each channel of a head in a full page, rounded outwards; then zeros."""
    plane: tl.constexpr = shape.keys
    # Some twice, in whole runs: see `RUN_TOKENS`.
    slot = tl.arange(0, plane.page_slots) % plane.page_tokens
    own = slot * 0 + page
    numbers = summaries[0] + (page.to(tl.int64) * shape.num_kv_heads + head) * summary_numbers
    for part in tl.static_range(tl.constexpr(shape.num_parts)):
        levels = key_levels(pages, own, slot, head, shape)
        tiles = key_tiles(pages, own, slot, head, levels, slot >= 0, False, part, shape)
        for index in tl.static_range(tl.constexpr(plane.tiles)):
            keys = tiles[index].to(tl.float32)
            if plane.is_coded:
                scales = scales_of(pages, own, slot, head, True, shape).to(tl.float32) * plane.code_factor
                keys *= scales[None, :]
            channel, exists = key_channels(part, index, plane)
            tl.store(numbers + channel, _outwards(tl.max(keys, axis=1), True), mask=exists)
            tl.store(numbers + plane.width + channel, _outwards(tl.min(keys, axis=1), False), mask=exists)
    rest = 2 * plane.width + tl.arange(0, REST)
    tl.store(numbers + rest, (rest * 0).to(tl.bfloat16), mask=rest < summary_numbers)


@triton.jit
def _outwards(numbers, is_up: tl.constexpr):
    """bf16 at or above numbers of fp32, or at or below them; what is no number stays that."""
    bits = numbers.to(tl.int32, bitcast=True)
    moves = ((bits & 0xFFFF) != 0) & ((bits < 0) != is_up) & (numbers == numbers)
    return ((bits >> 16) + moves.to(tl.int32)).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _lifted(extras, place, head, number, shape: tl.constexpr):
    """What the pairs that keys have in common add to scores in pages `number` of a sequence."""
    index = tl.arange(0, 32)
    lifts = tl.load(extras[3] + place * 32 + index)
    pair = index % 16
    turn = tl.load(extras[4] + (head * shape.num_pairs + pair) * 3 + 2, mask=pair < shape.num_pairs, other=0)
    turns = extras[5] + ((turn * 2 + index // 16) * shape.turn_pages)[None, :] + number[:, None]
    exists = (number[:, None] >= 0) & (number[:, None] < shape.turn_pages)
    return tl.sum(lifts[None, :] * tl.load(turns, mask=exists, other=0.0), axis=1)


@triton.jit
def _order_of(bounds, number, is_between):
    """Whole numbers in the order of bounds, of which zeros are equal."""
    bits = tl.load(bounds + number, mask=is_between, other=0.0).to(tl.int32, bitcast=True)
    bits = tl.where(bits == LEAST, 0, bits)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _least_of(bounds, num_pages, count, block: tl.constexpr):
    """What of the `count` best pages between the ends is least, as `_order_of` says; and how many of that there are.

    Found bit by bit: the largest number that no fewer pages reach.
    """
    least = tl.where(_num_from(bounds, num_pages, 0, False, block) >= count, 0, LEAST)
    for step in tl.range(0, 31):
        other = least + (1 << (30 - step))
        least = tl.where(_num_from(bounds, num_pages, other, False, block) >= count, other, least)
    return least, count - _num_from(bounds, num_pages, least, True, block)


@triton.jit
def _num_from(bounds, num_pages, least, is_above: tl.constexpr, block: tl.constexpr):
    """How many pages between the ends have bounds of `least` or more, or of more if `is_above`."""
    found = 0
    for first in tl.range(0, num_pages, block):
        number = first + tl.arange(0, block)
        order = _order_of(bounds, number, (number > 0) & (number < num_pages - 1))
        is_one = (number > 0) & (number < num_pages - 1) & ((order > least) if is_above else (order >= least))
        found += tl.sum(is_one.to(tl.int32), axis=0)
    return found
