"""What compression needs of pages, on the C++ kernels: what tokens are attended to by, and moving their bytes.

Knows how the bytes of a token lie in a page from the format's own views: `csrc/move.cpp` knows strides only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch

from pagoda.errors import ConfigError
from pagoda.kernels.base import AttentionRule, GroupView, LayerPages, check_scored
from pagoda.kernels.native_arguments import checked_sinks, described
from pagoda.kernels.native_calls import NativeCalls

if TYPE_CHECKING:
    from pagoda.kernels import _native


class _Cells(NamedTuple):
    """Where tokens go: the `first` cell of each KV head, and every `step`-th after it; a page has `of_page`."""

    first: list[int]
    step: int
    of_page: int


class NativeCompaction(NativeCalls):
    """CPU tensors."""

    def __init__(self, isa: str | None = None) -> None:
        super().__init__(isa)
        self._planes_said: WeakKeyDictionary[LayerPages, list[_native.TokenPlane]] = WeakKeyDictionary()

    def logits(self, query: torch.Tensor, layer: LayerPages, view: GroupView, rule: AttentionRule) -> torch.Tensor:
        check_scored(layer, view, rule)
        (rows, heads, _), kv_heads = query.shape, layer.key.plane.num_heads
        out = torch.empty(kv_heads, heads // kv_heads, rows, int(view.context_lengths[0]))
        self._kernels.logits(
            *self._scored(query, layer, view, rule), out.data_ptr(), rows, heads, torch.get_num_threads()
        )
        return out

    def attention_mass(
        self,
        query: torch.Tensor,
        layer: LayerPages,
        view: GroupView,
        rule: AttentionRule,
        sinks: torch.Tensor | None = None,
        *,
        is_peak: bool = False,
    ) -> torch.Tensor:
        check_scored(layer, view, rule)
        (rows, heads, _), kv_heads = query.shape, layer.key.plane.num_heads
        out = torch.zeros(kv_heads, heads // kv_heads, int(view.context_lengths[0]))
        logits = None if sinks is None else checked_sinks(sinks, heads)
        self._kernels.attention_mass(
            *self._scored(query, layer, view, rule),
            0 if logits is None else logits.data_ptr(),
            is_peak,
            out.data_ptr(),
            rows,
            heads,
            torch.get_num_threads(),
        )
        return out

    def move_tokens(self, layer: LayerPages, pages: torch.Tensor, kept: torch.Tensor, target: torch.Tensor) -> None:
        heads, count = kept.shape
        own = layer.layer * heads
        cells = _Cells(list(range(own, own + heads)), step=own + heads, of_page=own + heads)
        if len(target) * layer.geometry.page_tokens < count:
            raise ConfigError(f"There is no room for {count} tokens in {described(target)}.")
        self._move(layer, pages, list(kept), target, cells)

    def pack_tokens(
        self,
        layer: LayerPages,
        pages: torch.Tensor,
        kept: Sequence[torch.Tensor],
        target: torch.Tensor,
        first_cell: int,
    ) -> None:
        size, heads = layer.geometry.page_tokens, layer.key.plane.num_heads
        if layer.geometry.layer_nbytes is None or any(len(slots) % size for slots in kept):
            raise ConfigError("Only whole cells can be packed, of layers that are alike.")
        starts = accumulate((len(slots) // size for slots in kept[:-1]), initial=first_cell)
        self._move(layer, pages, kept, target, _Cells(list(starts), step=1, of_page=heads * len(layer.geometry.slots)))

    def _move(
        self,
        layer: LayerPages,
        pages: torch.Tensor,
        kept: Sequence[torch.Tensor],
        target: torch.Tensor,
        cells: _Cells,
    ) -> None:
        slots, pages = torch.cat(list(kept)), pages.contiguous()
        if slots.dtype is not torch.int64 or pages.dtype is not torch.int64 or len(kept) != layer.key.plane.num_heads:
            raise ConfigError(f"Tokens are {described(slots)} of pages {described(pages)}; both must be int64.")
        if target.dtype is not torch.uint8 or not target.is_contiguous():
            raise ConfigError(f"Tokens cannot be moved to {described(target)}; it must be contiguous uint8.")
        self._kernels.move_tokens(
            self._told.pages(layer),
            pages.data_ptr(),
            len(pages) * layer.geometry.page_tokens,
            slots.data_ptr(),
            list(accumulate(map(len, kept), initial=0)),
            cells.first,
            cells.step,
            cells.of_page,
            target.data_ptr(),
            len(target),
            target.shape[1],
            self._planes(layer),
            torch.get_num_threads(),
        )

    def _scored(
        self, query: torch.Tensor, layer: LayerPages, view: GroupView, rule: AttentionRule
    ) -> tuple[_native.Rows, _native.Pages, _native.Tables, _native.Rule]:
        heads, key = query.shape[1], layer.key.plane
        if heads % key.num_heads:
            raise ConfigError(f"{heads} query heads cannot share {key.num_heads} KV heads evenly.")
        return (
            self._told.rows("query", query, heads, key.width),
            self._told.pages(layer),
            self._told.tables(view),
            self._told.rule(rule, None),
        )

    def _planes(self, layer: LayerPages) -> list[_native.TokenPlane]:
        """Where tokens lie in a page of `layer`."""
        said = self._planes_said.get(layer)
        if said is None:
            self._planes_said[layer] = said = [
                self._native.TokenPlane(view.data_ptr() - layer.pages.data_ptr(), *_strides(view))
                for slot in layer.geometry.slots[layer.layer]
                for view in layer.format.token_views(
                    layer.pages[:1, slot.offset : slot.offset + slot.nbytes], slot.plane
                )
            ]
        return said


def _strides(view: torch.Tensor) -> tuple[int, ...]:
    """Of one of `Format.token_views`, as `TokenPlane` of csrc/attention.h has them."""
    _, head, outer, inner, run, number = (stride * view.itemsize for stride in view.stride())
    _, _, _, inner_tokens, num_runs, numbers = view.shape
    assert numbers == 1 or number == view.itemsize, "the last numbers lie side by side"
    run_nbytes = numbers * view.itemsize
    if run == run_nbytes:
        run_nbytes, num_runs = run_nbytes * num_runs, 1
    return head, inner_tokens, outer, inner, num_runs, run, run_nbytes
