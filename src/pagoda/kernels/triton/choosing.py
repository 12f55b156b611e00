"""Has rows choose the pages that they read, and says what they then attend to as if that were all.

Each row that chooses becomes a sequence of its own, of one row, with a table for each KV head. Knows the tables of a
step and summaries; `choose.py` finds the pages. Nothing here asks the device for anything.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import triton

from pagoda.errors import ConfigError
from pagoda.kernels.base import AttentionRule, AttentionUse, LayerSummaries, distance_obstacle
from pagoda.kernels.triton.choose import bound_pages, choose_pages, rest_of
from pagoda.kernels.triton.plan import Plan
from pagoda.kernels.triton.reading import Reading
from pagoda.kernels.triton.shapes import AttendShape

if TYPE_CHECKING:
    from pagoda.kernels.triton.attention import Call

# Rows of a sequence that are bound at a time, so that bounds take no more than so many numbers for each page.
PART_ROWS = 16
# Pages that a program bounds, and that it looks at in turn where it chooses.
BOUND_PAGES, CHOSEN_PAGES = 32, 1024
SEQUENCES = 64


def check_rule(rule: AttentionRule, has_biases: bool) -> None:
    """Raises ConfigError for rules by which pages cannot be chosen."""
    obstacle = distance_obstacle(AttentionUse(rule, has_biases=has_biases))
    if obstacle is not None:
        raise ConfigError(f"Pages cannot be chosen: {obstacle}.")


def row_nbytes(reading: Reading, shape: AttendShape) -> int:
    """What is kept of a row while it is computed, but for its bounds."""
    num_splits = reading.most_pages // shape.split_pages + 1
    return 4 * num_splits * shape.heads * (shape.value_width + 2) + 8 * shape.num_kv_heads * reading.most_pages


def chosen_by_rows(call: Call, reading: Reading, summaries: LayerSummaries, first: int, last: int) -> Plan:
    """What rows `first` to `last` of a batch attend to: lengths are 0 where a row does not choose."""
    shape, tables, number, device = call.shape, call.plan.tables, call.own.number, call.query.device
    rows, heads, entries = last - first, shape.num_kv_heads, len(tables[0])
    bounds = torch.empty(min(reading.most_rows, PART_ROWS) * heads * entries, device=device)
    pages, numbers = (
        torch.empty(rows * heads * reading.most_pages, dtype=torch.int32, device=device) for _ in range(2)
    )
    lengths = torch.zeros(rows, dtype=torch.int32, device=device)
    num_sequences = len(tables[3])
    for first_row in range(0, reading.most_rows, PART_ROWS):
        bound_pages[(entries // BOUND_PAGES + num_sequences, heads)](
            call.query, bounds, call.own.pages, tables, reading.readings, (summaries.numbers, summaries.is_made),
            call.extras, call.strides, number, num_sequences, first, last, first_row, PART_ROWS, entries,
            BOUND_PAGES, summaries.numbers.stride(1), shape, num_warps=4,
        )  # fmt: skip
        choose_pages[(rows, heads)](
            bounds, (pages, numbers, lengths), tables, reading.readings, summaries.is_made, number, num_sequences,
            first, first_row, PART_ROWS, entries, reading.most_pages, CHOSEN_PAGES, shape, num_warps=4,
        )  # fmt: skip
    virtual = (pages, reading.page_starts[: rows + 1], reading.row_starts[: rows + 1], lengths, numbers)
    return replace(call.plan, tables=virtual, few_rows=1, many_pages=0, num_pages=rows * reading.most_pages)


def rest_of_step(plan: Plan, reading: Reading, layer: int) -> Plan:
    """`plan` without the tokens of those that choose in a layer."""
    if reading.whole_layer is not None and layer >= reading.whole_layer:
        return replace(plan, few_rows=0, many_pages=0)
    lengths = plan.tables[3]
    rest = torch.empty_like(lengths)
    grid = (triton.cdiv(len(lengths), SEQUENCES),)
    rest_of[grid](lengths, reading.readings, rest, layer, len(lengths), SEQUENCES)
    return replace(plan, tables=(*plan.tables[:3], rest, *plan.tables[4:]))
