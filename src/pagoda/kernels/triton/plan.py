"""What one step of packed sequences looks like to kernels: tables on the device, and bounds that size launches.

Bounds come from lengths on the host, or are given where a step is recorded to be replayed with others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pagoda.kernels.base import GroupView

# Kernels are compiled for tensors that start at multiples of 16 bytes.
ALIGNED_ENTRIES = 4


@dataclass(frozen=True, eq=False)
class Plan:
    """`tables` are the four tensors of a view, on the device. Sequences are few rows each, or many.

    No sequence of few has more rows than `few_rows`, none of many more tokens than `many_tokens`; zero if there are
    none of a kind.
    """

    tables: tuple[torch.Tensor, ...]
    few_rows: int
    many_tokens: int

    @property
    def num_sequences(self) -> int:
        return len(self.tables[3])

    @property
    def num_entries(self) -> int:
        return len(self.tables[0])


def plan_step(view: GroupView, device: torch.device, most_few_rows: int) -> Plan:
    """Of a view on the host, whose rows follow one another."""
    assert view.positions is None and view.slots is None and view.ancestors is None and view.cell_starts is None
    counts = view.query_starts.diff()
    is_few = counts <= most_few_rows
    many = view.context_lengths[~is_few]
    return Plan(
        _on_device(view, device),
        few_rows=int(counts[is_few].max()) if is_few.any() else 0,
        many_tokens=int(many.max()) if len(many) else 0,
    )


def plan_recorded(view: GroupView, few_rows: int, tables: tuple[torch.Tensor, ...] | None) -> Plan:
    """Of tables on the device whose contents change: sequences have up to `few_rows` rows, contexts any length."""
    return Plan(tables or _tensors(view), few_rows, 0)


def _tensors(view: GroupView) -> tuple[torch.Tensor, ...]:
    return view.page_indices, view.page_starts, view.query_starts, view.context_lengths


def _on_device(view: GroupView, device: torch.device) -> tuple[torch.Tensor, ...]:
    """In one transfer, each where kernels expect tensors to start."""
    tensors = _tensors(view)
    padded = [torch.nn.functional.pad(each, (0, -len(each) % ALIGNED_ENTRIES)) for each in tensors]
    parts = torch.cat(padded).to(device).split([len(each) for each in padded])
    return tuple(part[: len(each)] for part, each in zip(parts, tensors, strict=True))
