"""Which tokens the new rows of a sequence see, and how far back: the definition, for the reference kernels and tests.

A row sees what was stored before the step, itself, and those new rows that come before it, or that are its ancestors
in a tree; of these, what its rule lets it reach. Written out as a matrix of rows and slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pagoda.kernels.base import MOST_TREE_ROWS, AttentionRule, GroupView
from pagoda.layouts.spec import Reach


@dataclass(frozen=True)
class Sight:
    """Of some rows of a sequence and all of its slots: what is reached, bool, and distances back, int64."""

    reached: torch.Tensor  # [rows, slots]
    distances: torch.Tensor  # [rows, slots]

    def to(self, device: torch.device) -> Sight:
        return Sight(self.reached.to(device), self.distances.to(device))

    @classmethod
    def of_last(cls, num_rows: int, num_tokens: int, rule: AttentionRule) -> Sight:
        """Of the last rows of a sequence that is stored in order."""
        slots = torch.arange(num_tokens - num_rows, num_tokens)
        if rule.reach is Reach.ENCODER:  # rows are none of its tokens
            return cls(torch.ones(num_rows, num_tokens, dtype=torch.bool), slots[:, None] - torch.arange(num_tokens))
        return _sight(num_tokens, slots, slots, torch.ones(num_rows, num_rows, dtype=torch.bool), rule)

    @classmethod
    def of(cls, view: GroupView, sequence: int, rule: AttentionRule) -> Sight:
        """Of the new rows of sequence `sequence`."""
        first, last = view.query_starts[sequence : sequence + 2].tolist()
        num_tokens = int(view.context_lengths[sequence])
        if rule.reach is Reach.ENCODER:
            return cls.of_last(last - first, num_tokens, rule)
        slots = slots_of(view, sequence)
        positions = slots if view.positions is None else view.positions[first:last].long()
        return _sight(num_tokens, slots, positions, _ancestors(view, first, last), rule)


def slots_of(view: GroupView, sequence: int) -> torch.Tensor:
    """Where the new rows of sequence `sequence` lie in its table: int64 [rows]."""
    first, last = view.query_starts[sequence : sequence + 2].tolist()
    if view.slots is not None:
        return view.slots[first:last].long()
    length = int(view.context_lengths[sequence])
    return torch.arange(length - (last - first), length)


def _ancestors(view: GroupView, first: int, last: int) -> torch.Tensor:
    """Which of the other new rows each may see if they come before it: bool [rows, rows]."""
    count = last - first
    if view.ancestors is None:
        return torch.ones(count, count, dtype=torch.bool)
    shifts = torch.arange(count).clamp(max=MOST_TREE_ROWS - 1)
    return (view.ancestors[first:last, None] >> shifts & 1).bool()


def _sight(
    num_tokens: int, slots: torch.Tensor, positions: torch.Tensor, ancestors: torch.Tensor, rule: AttentionRule
) -> Sight:
    seen = torch.ones(len(slots), num_tokens, dtype=torch.bool)
    seen[:, slots] = ancestors.tril(-1) | torch.eye(len(slots), dtype=torch.bool)
    places = torch.arange(num_tokens)
    places[slots] = positions
    distances = positions[:, None] - places
    if rule.span is not None:
        near = distances < rule.span
        if rule.reach is Reach.CHUNKED:
            near = positions[:, None] // rule.span == places // rule.span
        if rule.reach is not Reach.FULL:
            seen &= near | (places < rule.sink_tokens)
    return Sight(seen, distances)
