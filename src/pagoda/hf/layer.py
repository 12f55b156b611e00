"""A layer of a `PagedCache` as transformers sees it: dense while a call runs, and read from pages where one begins.

What is dense, windows included, is transformers' own work: its layers for full attention and for windows are kept as
they are, and get what pages give back instead of what was computed.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from pagoda.hf.layer_bytes import LayerBytes, Span
from pagoda.hf.rows import Rows


class FromPages(DynamicLayer):  # type: ignore[no-untyped-call]
    """Mixed in before the class of a dense layer. `num_written` counts the calls that stored keys and values here."""

    def __init__(self, kept: LayerBytes, rows: Rows, group: int, **settings: Any) -> None:
        super().__init__(**settings)  # type: ignore[no-untyped-call]
        self._kept = kept
        self._rows = rows
        self._group = group
        self._num_attached: int | None = None  # columns of pages that are not dense yet
        self.num_written = 0

    def begin(self, num_columns: int) -> None:
        """Forget what is dense: so many columns are in pages, and are read when the model gets here."""
        self.reset()
        if num_columns:
            self._num_attached = num_columns
            self.cumulative_length = num_columns  # of a window

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._num_attached is not None:
            self._read(self._num_attached, (key_states, value_states))
        key, value = self._kept.write(self._rows.places[self._group], (key_states, value_states))
        self.num_written += 1
        return super().update(key, value, *args, **kwargs)

    def get_seq_length(self) -> int:
        return self._num_attached if self._num_attached is not None else super().get_seq_length()

    def reset(self) -> None:
        self._num_attached = None
        super().reset()

    @property
    def can_crop(self) -> bool:
        """Whether what is dense begins early enough to take back the last columns."""
        return True

    def shown_columns(self, num_columns: int) -> int:
        """How many of the columns before a call it sees."""
        return num_columns

    def _read(self, num_columns: int, like: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._num_attached = None
        self.lazy_initialization(*like)
        span = Span(num_columns, self.shown_columns(num_columns), self._rows.paddings)
        self.keys, self.values = self._kept.read(span, self._rows.tables(self._group), like)


class FullLayer(FromPages):  # type: ignore[no-untyped-call]
    """Sees all tokens."""


class WindowLayer(FromPages, DynamicSlidingWindowLayer):  # type: ignore[no-untyped-call]
    """Sees the last tokens."""

    @property
    def can_crop(self) -> bool:
        return self.record_past or self.get_seq_length() < self.sliding_window

    def shown_columns(self, num_columns: int) -> int:
        return min(num_columns, self.sliding_window - 1)
