"""Rows that read some of their pages: has them choose, and says what they then attend to as if that were all.

Each row that chooses becomes a sequence of its own, of one row, with a table for each KV head. Knows the tables of a
step and summaries; `choose.py` finds the pages. Nothing here asks the device for anything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch
import triton

from pagoda.errors import ConfigError
from pagoda.kernels.base import AttentionRule, AttentionUse, GroupView, LayerSummaries, distance_obstacle
from pagoda.kernels.triton.choose import bound_pages, choose_pages, rest_of

if TYPE_CHECKING:
    from pagoda.kernels.triton.attention import Call
    from pagoda.kernels.triton.plan import Plan
    from pagoda.kernels.triton.shapes import AttendShape

LEAST_PAGES = 3
# Rows of a sequence that are bound at a time, so that bounds take no more than so many numbers for each page.
PART_ROWS = 16
# Pages that a program bounds, and that it looks at in turn where it chooses.
BOUND_PAGES, CHOSEN_PAGES = 32, 1024
SEQUENCES = 64


@dataclass(frozen=True, eq=False)
class Reading:
    """Of a view with `readings`, on the device as [2 x sequences].

    A row reads `most_pages` at most, in layers from `first_layer` on; from `whole_layer` on all rows choose, if that is
    not None. Sequences that choose have up to `most_rows`. `row_starts` are those of rows as sequences of their own.
    """

    readings: torch.Tensor
    row_starts: torch.Tensor
    most_pages: int
    most_rows: int
    first_layer: int
    whole_layer: int | None

    @classmethod
    def of(cls, view: GroupView, readings: torch.Tensor) -> Self | None:
        """None if nobody chooses; `readings` are those of `view`. Raises ConfigError for rows that cannot."""
        if view.readings is None:
            return None
        chooses = view.readings[:, 0] > 0
        if not chooses.any():
            return None
        _check(view, chooses)
        # Padded sequences have no rows of their own, but rows are computed for them.
        num_rows = max(int(view.query_starts[-1]), len(view.context_lengths))
        return cls(
            readings=readings,
            row_starts=torch.arange(num_rows + 1, dtype=torch.int32, device=readings.device),
            most_pages=int(view.readings[:, 0].max()),
            most_rows=int(view.query_starts.diff()[chooses].max()),
            first_layer=int(view.readings[chooses, 1].min()),
            whole_layer=whole_layer_of(view),
        )

    @cached_property
    def page_starts(self) -> torch.Tensor:
        """Of the pages of rows, as `row_starts`."""
        return self.row_starts * self.most_pages

    def covers(self, view: GroupView) -> bool:
        """Whether rows of `view`, as many, read no more, and in no layer more of them all."""
        assert view.readings is not None
        chooses, whole_layer = view.readings[:, 0] > 0, whole_layer_of(view)
        first_layers = view.readings[chooses, 1].tolist()
        if self.whole_layer is not None and (whole_layer is None or whole_layer > self.whole_layer):
            return False
        return int(view.readings[:, 0].max()) <= self.most_pages and min(first_layers, default=0) >= self.first_layer

    def rest(self, plan: Plan, layer: int) -> Plan:
        """`plan` without the tokens of those that choose in a layer."""
        if self.whole_layer is not None and layer >= self.whole_layer:
            return replace(plan, few_rows=0, many_pages=0)
        lengths = plan.tables[3]
        rest = torch.empty_like(lengths)
        grid = (triton.cdiv(len(lengths), SEQUENCES),)
        rest_of[grid](lengths, self.readings, rest, layer, len(lengths), SEQUENCES)
        return replace(plan, tables=(*plan.tables[:3], rest, *plan.tables[4:]))

    def or_more(self, other: Self) -> Self:
        """For views that either is for, with as many rows."""
        whole_layers = [each for each in (self.whole_layer, other.whole_layer) if each is not None]
        return replace(
            self,
            most_pages=max(self.most_pages, other.most_pages),
            first_layer=min(self.first_layer, other.first_layer),
            whole_layer=max(whole_layers) if len(whole_layers) == 2 else None,
        )

    def row_nbytes(self, shape: AttendShape) -> int:
        """What is kept of a row while it is computed, but for its bounds."""
        num_splits = self.most_pages // shape.split_pages + 1
        return 4 * num_splits * shape.heads * (shape.value_width + 2) + 8 * shape.num_kv_heads * self.most_pages

    def chosen(self, call: Call, summaries: LayerSummaries, first: int, last: int) -> Plan:
        """What rows `first` to `last` of a batch attend to: lengths are 0 where a row does not choose."""
        shape, tables, number, device = call.shape, call.plan.tables, call.own.number, call.query.device
        rows, heads, entries = last - first, shape.num_kv_heads, len(tables[0])
        bounds = torch.empty(min(self.most_rows, PART_ROWS) * heads * entries, device=device)
        pages, numbers = (
            torch.empty(rows * heads * self.most_pages, dtype=torch.int32, device=device) for _ in range(2)
        )
        lengths = torch.zeros(rows, dtype=torch.int32, device=device)
        num_sequences = len(tables[3])
        for first_row in range(0, self.most_rows, PART_ROWS):
            bound_pages[(entries // BOUND_PAGES + num_sequences, heads)](
                call.query, bounds, call.own.pages, tables, self.readings, (summaries.numbers, summaries.is_made),
                call.extras, call.strides, number, num_sequences, first, last, first_row, PART_ROWS, entries,
                BOUND_PAGES, summaries.numbers.stride(1), shape, num_warps=4,
            )  # fmt: skip
            choose_pages[(rows, heads)](
                bounds, (pages, numbers, lengths), tables, self.readings, summaries.is_made, number, num_sequences,
                first, first_row, PART_ROWS, entries, self.most_pages, CHOSEN_PAGES, shape, num_warps=4,
            )  # fmt: skip
        virtual = (pages, self.page_starts[: rows + 1], self.row_starts[: rows + 1], lengths, numbers)
        return replace(call.plan, tables=virtual, few_rows=1, many_pages=0, num_pages=rows * self.most_pages)


def whole_layer_of(view: GroupView) -> int | None:
    """From which layer on all sequences with rows choose pages; None if some read all of theirs."""
    if view.readings is None:
        return None
    readings = view.readings[view.query_starts.diff() > 0]
    return int(readings[:, 1].max()) if len(readings) and bool((readings[:, 0] > 0).all()) else None


def check_rule(rule: AttentionRule, has_biases: bool) -> None:
    """Raises ConfigError for rules by which pages cannot be chosen."""
    obstacle = distance_obstacle(AttentionUse(rule, has_biases=has_biases))
    if obstacle is not None:
        raise ConfigError(f"Pages cannot be chosen: {obstacle}.")


def _check(view: GroupView, chooses: torch.Tensor) -> None:
    assert view.readings is not None
    obstacle = None
    if int(view.readings[chooses, 0].min()) < LEAST_PAGES:
        obstacle = f"{LEAST_PAGES} are the fewest that a row reads"
    is_packed = view.cell_starts is not None and bool((view.cell_starts[chooses, -1] > 0).any())
    if is_packed or view.slots is not None or view.ancestors is not None:
        obstacle = "rows must follow one another, on pages that are not packed"
    if obstacle is not None:
        raise ConfigError(f"Pages cannot be chosen: {obstacle}.")
