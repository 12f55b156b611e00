"""What kernels read of the tables of a step: which pages hold the tokens of a sequence, and where its new rows lie.

`plan.py` says what tables there are. Numbers of pages are those of the pool; of packed pages they are numbers of cells,
which name the share of a layer and of a KV head besides.
"""

import triton
import triton.language as tl


@triton.jit
def split_starts_of(tables, shape: tl.constexpr):
    """Where sequences begin among all pages that splits are made of."""
    return tables[5] if shape.has_cells else tables[1]


@triton.jit
def num_tokens_of(tables, layer, sequence, head, shape: tl.constexpr):
    """How many tokens KV head `head` has of a sequence."""
    length = tl.load(tables[3] + sequence)
    if shape.has_cells:
        first, last, num_packed = _packed(tables, layer, sequence, head, shape)
        length += (last - first - num_packed) * shape.keys.page_tokens
    return length


@triton.jit
def table_of(tables, layer, sequence, head, shape: tl.constexpr):
    """Where the pages of a sequence are listed, and what else there is to know of them.

    Of packed ones the first cell of the head, how many it has, how many pages these are, and which share is its own;
    of chosen ones where it is listed which of their sequence they are.
    """
    first_page = tl.load(tables[1] + sequence)
    if shape.has_choice:
        count = tl.load(tables[1] + sequence + 1) - first_page
        place = first_page.to(tl.int64) * shape.num_kv_heads + head * count
        return tables[0] + place, tables[4] + place
    elif shape.has_cells:
        first, last, num_packed = _packed(tables, layer, sequence, head, shape)
        return tables[0] + first_page, (first, last - first, num_packed, layer * shape.num_kv_heads + head)
    else:
        return tables[0] + first_page, 0


@triton.jit
def numbers_of(table, cells, token, length, shape: tl.constexpr):
    """The pages of tokens, or their cells, int64, if there are packed pages; -1 in pages that begin behind the last."""
    number = token // shape.keys.page_tokens
    exists = number * shape.keys.page_tokens < length
    if shape.has_cells:
        shares: tl.constexpr = shape.num_layers * shape.num_kv_heads
        cell = cells[0] + number
        is_packed = number < cells[1]
        place = tl.where(is_packed, cell // shares, cells[2] + number - cells[1])
        page = tl.load(table + place, mask=exists, other=-1).to(tl.int64)
        return tl.where(page < 0, page, page * shares + tl.where(is_packed, cell % shares, cells[3]))
    else:
        return tl.load(table + number, mask=exists, other=-1)


@triton.jit
def shares_of(number, unit: tl.constexpr, plane: tl.constexpr, shape: tl.constexpr):
    """Where pages begin from the start of the pool, int64, in units of so many bytes; or where cells do in a plane."""
    number = number.to(tl.int64)
    if shape.has_cells:
        shares: tl.constexpr = shape.num_layers * shape.num_kv_heads
        share = number % shares
        layers = share // shape.num_kv_heads * (shape.layer_nbytes // unit)
        heads = share % shape.num_kv_heads * (plane.head_nbytes // unit)
        return number // shares * (shape.page_nbytes // unit) + layers + heads
    else:
        return number * (shape.page_nbytes // unit)


@triton.jit
def places_of(tables, sequence, first_row, shape: tl.constexpr):
    """Of new rows that do not follow one another: the first slot that one lies in, and from there on rows by slot.

    Behind them their positions.
    """
    if shape.has_places:
        rows = tables[8] + tl.load(tables[7] + sequence * 2 + 1)
        return tl.load(tables[7] + sequence * 2), rows, tables[4] + first_row
    else:
        return 0


@triton.jit
def position_of(places, row, length, num_rows, shape: tl.constexpr):
    """The positions of new rows `row` of a sequence."""
    if shape.has_places:
        return tl.load(places[2] + row, mask=row < num_rows, other=0)
    else:
        return length - num_rows + row


@triton.jit
def ancestors_of(tables, row, end, shape: tl.constexpr):
    """Which new rows before them in their sequence rows see, those of the step before `end`: a bit for each."""
    return tl.load(tables[6] + row, mask=row < end, other=0) if shape.has_places else 0


@triton.jit
def _packed(tables, layer, sequence, head, shape: tl.constexpr):
    """The first packed cell of a head, the one behind its last, and how many pages of the sequence are packed."""
    shares: tl.constexpr = shape.num_layers * shape.num_kv_heads
    starts = tables[4] + sequence.to(tl.int64) * (shares + 1)
    own = starts + layer * shape.num_kv_heads + head
    return tl.load(own), tl.load(own + 1), (tl.load(starts + shares) + shares - 1) // shares
