"""How much rows read of their pages in one step, as far as launches depend on it: bounds for all sequences together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch

from pagoda.errors import ConfigError
from pagoda.kernels.base import GroupView

LEAST_PAGES = 3


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

    def or_more(self, other: Self) -> Self:
        """For views that either is for, with as many rows."""
        whole_layers = [each for each in (self.whole_layer, other.whole_layer) if each is not None]
        return replace(
            self,
            most_pages=max(self.most_pages, other.most_pages),
            first_layer=min(self.first_layer, other.first_layer),
            whole_layer=max(whole_layers) if len(whole_layers) == 2 else None,
        )


def whole_layer_of(view: GroupView) -> int | None:
    """From which layer on all sequences with rows choose pages; None if some read all of theirs."""
    if view.readings is None:
        return None
    readings = view.readings[view.query_starts.diff() > 0]
    return int(readings[:, 1].max()) if len(readings) and bool((readings[:, 0] > 0).all()) else None


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
