"""Attention and storing on the device: describes layers to the kernels, sizes their launches, and keeps no numbers.

Knows torch tensors, page tables and formats. How kernels compute is in the other files of this folder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl

from pagoda.errors import ConfigError
from pagoda.kernels.base import AttentionRule, GroupView, LayerPages
from pagoda.kernels.triton import tiles
from pagoda.kernels.triton.attend import attend_few, attend_many
from pagoda.kernels.triton.choosing import check_rule, chosen_by_rows, rest_of_step, row_nbytes
from pagoda.kernels.triton.own_pages import OwnPages
from pagoda.kernels.triton.plan import Plan, Room, plan_recorded, plan_step
from pagoda.kernels.triton.planes import PlaneShape
from pagoda.kernels.triton.prepare import prepare_queries
from pagoda.kernels.triton.reading import Reading
from pagoda.kernels.triton.reduce import reduce_splits
from pagoda.kernels.triton.shapes import PAIR_ROWS, AttendShape, RuleShape, Tile
from pagoda.kernels.triton.store import store_rows
from pagoda.layouts.spec import Reach

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
PREPARED_ROWS = 8
# Of shapes before it is known how many rows there are.
ANY_TILE = Tile(rows=16, tokens=64, num_warps=4, num_stages=1)


@dataclass(frozen=True, eq=False)
class Call:
    """One call of `attend`: what kernels get, but for what depends on the regime."""

    query: torch.Tensor
    own: OwnPages
    out: torch.Tensor
    extras: tuple[torch.Tensor, ...]
    plan: Plan
    shape: AttendShape

    @property
    def strides(self) -> tuple[int, int]:
        return self.query.stride(0), self.query.stride(1)

    def of_rows(self, first: int, last: int, plan: Plan) -> Call:
        """These rows alone, each a sequence of `plan` that chose its pages."""
        lifts = self.extras[3]
        if self.shape.has_constants:
            lifts = lifts[first * self.shape.heads * PAIR_ROWS :]
        return replace(
            self,
            query=self.query[first:last],
            out=self.out[first:last],
            extras=(*self.extras[:3], lifts, *self.extras[4:]),
            plan=plan,
            shape=replace(self.shape, has_choice=True),
        )

    @cached_property
    def common(self) -> tuple[Any, ...]:
        return self.own.pages, self.plan.tables, self.extras


class TritonAttention:
    """Tensors on the device, or on the CPU where Triton interprets. `table` has the tiles of the card.

    With `has_ptx` kernels may hold instructions of NVIDIA's.
    """

    # Of a sequence, so that it is computed split by split.
    most_few_rows = tiles.FEW_ROWS

    def __init__(self, table: tiles.Tiles = tiles.HOPPER, has_ptx: bool = torch.version.hip is None) -> None:
        self.table = table
        self.has_ptx = has_ptx
        self._plans: WeakKeyDictionary[GroupView, Plan] = WeakKeyDictionary()
        self._found: WeakKeyDictionary[LayerPages, OwnPages] = WeakKeyDictionary()
        self._slopes: dict[tuple[tuple[float, ...], torch.device], torch.Tensor] = {}

    def record(
        self,
        view: GroupView,
        tables: tuple[torch.Tensor, ...],
        room: Room,
        few_rows: int = 1,
        before: Reading | None = None,
    ) -> Plan:
        """Let calls with `view` launch the same whatever its `tables` hold, on the device, as far as there is `room`.

        No sequence may have more than `few_rows` new rows. These may read as much as those `before`, or as those of the
        view.
        """
        if few_rows > tiles.FEW_ROWS:
            raise ConfigError(f"A recorded step has up to {tiles.FEW_ROWS} rows a sequence, not {few_rows}.")
        plan = plan_recorded(view, tables, room, few_rows, few_rows <= self.most_few_rows)
        if plan.reading is not None and before is not None:
            plan = replace(plan, reading=plan.reading.or_more(before))
        self._plans[view] = plan
        return plan

    def store(
        self,
        key: torch.Tensor,
        value: torch.Tensor | None,
        layer: LayerPages,
        view: GroupView,
        finite: torch.Tensor | None = None,
    ) -> None:
        if not len(key):
            return
        own = self._own(layer)
        key_shape, value_shape = own.keys, own.values
        plan = self._plan_of(view, layer)
        planes = 1 if value is None else 2
        value = key if value is None else value
        constants = layer.constants
        none = own.pages
        extras = (none,) * 4
        if constants is not None:
            extras = (constants.pairs, constants.turns.table, constants.scales, constants.bases)
        rows = tiles.stored_rows(max(key_shape.row_width, value_shape.row_width))
        store_rows[(triton.cdiv(len(key), rows), layer.key.plane.num_heads, planes)](
            (key, value),
            own.pages,
            none if finite is None else finite,
            none if layer.summaries is None else layer.summaries.is_made,
            plan.tables,
            extras,
            ((key.stride(0), key.stride(1)), (value.stride(0), value.stride(1))),
            len(key),
            plan.num_sequences,
            rows,
            finite is not None,
            layer.summaries is not None,
            plan.has_places,
            constants is not None,
            0 if constants is None else constants.num_pairs,
            0 if constants is None else constants.turns.table.shape[2],
            own.pages.stride(0),
            key_shape,
            value_shape,
            num_warps=4,
            enable_fp_fusion=False,
        )

    def attend(
        self,
        query: torch.Tensor,
        layer: LayerPages,
        view: GroupView,
        rule: AttentionRule,
        sinks: torch.Tensor | None = None,
        biases: torch.Tensor | None = None,
    ) -> torch.Tensor:
        out = query.new_empty(query.shape[0], query.shape[1], layer.value_width)
        plan = self._plan_of(view, layer)
        if not len(query):
            return out
        own = self._own(layer)
        shape = self._shape(query, own, plan, rule, sinks, biases)
        call = Call(query, own, out, self._extras(query, layer, rule, sinks, biases), plan, shape)
        if shape.turns_queries:
            call = _prepared(call)
        if plan.reading is not None and own.number >= plan.reading.first_layer:
            call = self._attend_in_part(call, layer, rule, biases is not None)
            plan = call.plan
        if plan.few_rows:
            self._attend_few(self._in_regime(call, is_few=True))
        if plan.many_pages:
            self._attend_many(self._in_regime(call, is_few=False))
        return out

    def _attend_in_part(self, call: Call, layer: LayerPages, rule: AttentionRule, has_biases: bool) -> Call:
        """Attention of rows that choose their pages; returns what is left to compute."""
        reading, summaries, num_rows = call.plan.reading, layer.summaries, len(call.query)
        assert reading is not None
        check_rule(rule, has_biases)
        if summaries is None:
            raise ConfigError("There are no summaries of pages to choose them by.")
        call_of_part = self._in_regime(replace(call, shape=replace(call.shape, num_layers=0, layer_nbytes=0)), True)
        rows = max(1, self.table.partial_nbytes // row_nbytes(reading, call_of_part.shape))
        for first in range(0, num_rows, rows):
            last = min(first + rows, num_rows)
            chosen = chosen_by_rows(call_of_part, reading, summaries, first, last)
            self._attend_few(call_of_part.of_rows(first, last, chosen))
        return replace(call, plan=rest_of_step(call.plan, reading, call.own.number))

    def _attend_few(self, call: Call) -> None:
        plan, shape = call.plan, call.shape
        num_splits = plan.num_pages // shape.split_pages + plan.num_sequences
        partial, statistics = _scratch(call, num_splits * plan.few_rows * shape.heads)
        blocks = triton.cdiv(plan.few_rows * shape.group, shape.tile.rows)
        programs = min(num_splits * shape.num_kv_heads * blocks, self._most_programs(call.query.device))
        attend_few[(programs,)](
            call.query, (call.out, partial, statistics), *call.common, call.strides, call.own.number,
            plan.num_sequences, plan.few_rows, shape, **_options(shape),
        )  # fmt: skip
        reduce_splits[(len(call.query), shape.heads)](
            call.out, partial, statistics, *call.common[1:], call.own.number, plan.num_sequences, plan.few_rows, 0, 0,
            tiles.reduced_splits(shape.reduced_width, True), True, shape,
        )  # fmt: skip

    def _attend_many(self, call: Call) -> None:
        plan, shape, num_rows = call.plan, call.shape, len(call.query)
        num_splits = triton.cdiv(plan.many_pages, shape.split_pages)
        is_direct = num_splits == 1 and not shape.turns_results
        row_nbytes = num_splits * shape.heads * (shape.value_width + 2) * 4
        rows = num_rows if is_direct else min(num_rows, max(1, self.table.partial_nbytes // row_nbytes))
        partial, statistics = _scratch(call, 1 if is_direct else rows * shape.heads * num_splits)
        blocks = num_rows * shape.group // shape.tile.rows + plan.num_sequences
        for first in range(0, num_rows, rows):
            last = min(first + rows, num_rows)
            attend_many[(blocks, shape.num_kv_heads, num_splits)](
                call.query, (call.out, partial, statistics), *call.common, call.strides, call.own.number,
                plan.num_sequences, plan.few_rows, first, last, num_splits, shape, **_options(shape),
            )  # fmt: skip
            if not is_direct:
                reduce_splits[(last - first, shape.heads)](
                    call.out, partial, statistics, *call.common[1:], call.own.number, plan.num_sequences,
                    plan.few_rows, first, num_splits, tiles.reduced_splits(shape.reduced_width, False), False, shape,
                )  # fmt: skip

    def _plan_of(self, view: GroupView, layer: LayerPages) -> Plan:
        plan = self._plans.get(view)
        if plan is None:
            self._plans[view] = plan = plan_step(view, layer.pages.device, self.most_few_rows)
        return plan

    def _own(self, layer: LayerPages) -> OwnPages:
        found = self._found.get(layer)
        if found is None:
            self._found[layer] = found = OwnPages.of(layer)
        return found

    def _shape(
        self,
        query: torch.Tensor,
        own: OwnPages,
        plan: Plan,
        rule: AttentionRule,
        sinks: torch.Tensor | None,
        biases: torch.Tensor | None,
    ) -> AttendShape:
        key, value, constants = own.keys, own.values, own.constants
        num_kv_heads, num_heads = own.num_kv_heads, query.shape[1]
        if num_heads % num_kv_heads:
            raise ConfigError(f"{num_heads} query heads cannot share {num_kv_heads} KV heads evenly.")
        has_span = rule.span is not None or rule.reach is Reach.ENCODER
        reach = rule.reach if has_span else Reach.FULL
        key_dot, value_dot = _dot_dtypes(query.dtype, key, value)
        return AttendShape(
            keys=key,
            values=value,
            num_kv_heads=num_kv_heads,
            group=num_heads // num_kv_heads,
            page_nbytes=own.pages.stride(0),
            has_scales=constants is not None,
            num_pairs=0 if constants is None else constants.num_pairs,
            turn_pages=0 if constants is None else constants.turns.table.shape[2],
            has_places=plan.has_places and reach is not Reach.ENCODER,
            has_choice=False,
            num_layers=own.num_layers if plan.has_cells else 0,
            layer_nbytes=own.layer_nbytes if plan.has_cells else 0,
            rule=RuleShape(
                reach=str(reach),
                span=rule.span or 0,
                scale=rule.scale,
                soft_cap=rule.soft_cap or 0.0,
                has_slopes=rule.slopes is not None,
                num_biases=0 if biases is None else biases.shape[1],
                has_sinks=sinks is not None,
                sink_tokens=rule.sink_tokens if reach in (Reach.SLIDING, Reach.CHUNKED) else 0,
            ),
            tile=ANY_TILE,
            split_pages=tiles.split_pages(1, key.page_tokens, ANY_TILE),
            key_dot=key_dot,
            value_dot=value_dot,
            has_ptx=self.has_ptx,
        )

    def _extras(
        self,
        query: torch.Tensor,
        layer: LayerPages,
        rule: AttentionRule,
        sinks: torch.Tensor | None,
        biases: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        """Sinks, slopes, biases, lifts and constants; the query stands for what there is not."""
        constants = layer.constants
        kept = (query,) * 4
        if constants is not None:
            kept = (constants.pairs, constants.turns.table, constants.scales, constants.bases)
        return (
            query if sinks is None else sinks.float().contiguous(),
            query if rule.slopes is None else self._slopes_on(rule.slopes, query.device),
            query if biases is None else biases.float().contiguous(),
            query,
            *kept,
        )

    def _slopes_on(self, slopes: tuple[float, ...], device: torch.device) -> torch.Tensor:
        kept = self._slopes.get((slopes, device))
        if kept is None:
            kept = self._slopes[slopes, device] = torch.tensor(slopes, device=device)
        return kept

    def _in_regime(self, call: Call, is_few: bool) -> Call:
        shape = call.shape
        tile = tiles.fitting(self._tile(shape, is_few), shape.load, self.table.shared_nbytes)
        tokens = self.table.split_tokens(shape.num_kv_heads, is_few)
        split_pages = tiles.split_pages(tokens, shape.keys.page_tokens, tile)
        return replace(call, shape=replace(shape, tile=tile, split_pages=split_pages))

    def _tile(self, shape: AttendShape, is_few: bool) -> Tile:
        table = self.table
        if tl.float32 in (shape.key_dot, shape.value_dot):
            return table.exact
        if shape.has_latents:
            return table.few_latents if is_few else table.many_latents
        if shape.rule.num_biases and not is_few:
            return table.many_biased
        if shape.keys.is_coded or shape.values.is_coded:
            return table.few_codes if is_few else table.many_codes
        return table.few if is_few else table.many

    def _most_programs(self, device: torch.device) -> int:
        if device.type != "cuda":
            return 2
        return torch.cuda.get_device_properties(device).multi_processor_count * self.table.programs_per_processor


def _prepared(call: Call) -> Call:
    """The call with queries as they meet what is kept of keys, and their lifts."""
    query, shape = call.query, call.shape
    items = len(query) * shape.heads
    turned = torch.empty(len(query), shape.heads, shape.keys.width, device=query.device)
    lifts = torch.empty(items * PAIR_ROWS if shape.has_constants else 1, device=query.device)
    prepare_queries[(triton.cdiv(items, PREPARED_ROWS),)](
        query, turned, lifts, call.extras, call.strides, len(query), PREPARED_ROWS, shape
    )
    return replace(call, query=turned, extras=(*call.extras[:3], lifts, *call.extras[4:]))


def _scratch(call: Call, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    device = call.query.device
    return torch.empty(slots, call.shape.value_width, device=device), torch.empty(slots, 2, device=device)


def _options(shape: AttendShape) -> dict[str, Any]:
    tile = shape.tile
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": False}
    return {**options, "maxnreg": tile.max_registers} if shape.has_ptx and tile.max_registers else options


def _dot_dtypes(query: torch.dtype, key: PlaneShape, value: PlaneShape) -> tuple[Any, Any]:
    """What queries and keys, weights and values are multiplied as: exactly, unless that is what they are kept in.

    Codes are fp16, in whose range kernels keep what meets them.
    """
    if query is torch.float32:
        return tl.float32, tl.float32
    own = DTYPES[query]
    name = {tl.float16: "fp16", tl.bfloat16: "bf16"}[own]
    dots = [tl.float16 if each.is_coded else own if each.encoding == name else tl.float32 for each in (key, value)]
    return dots[0], dots[0] if key.value_width else dots[1]
