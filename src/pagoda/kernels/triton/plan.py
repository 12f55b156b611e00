"""What one step of packed sequences looks like to kernels: tables on the device, and bounds that size launches.

Bounds come from lengths on the host, or are given where a step is recorded to be replayed with others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pagoda.errors import ConfigError
from pagoda.kernels.base import CHAIN, GroupView
from pagoda.kernels.sight import slots_of
from pagoda.kernels.triton.reading import Reading

# Kernels are compiled for tensors that start at multiples of 16 bytes.
ALIGNED_ENTRIES = 4


@dataclass(frozen=True, eq=False)
class Plan:
    """`tables` are the four tensors of a view, on the device. Sequences are few rows each, or many.

    No sequence of few has more rows than `few_rows`, none of many more tokens than `many_tokens`; zero if there are
    none of a kind. All sequences together have `num_pages` at most, counting those that most of a packed one's heads
    have.

    If it `has_places`, tables of rows follow: positions, slots and ancestors; of each sequence its first slot with a
    new row, and where the rows by slot, -1 for none, begin that the last table has from there on. If it `has_cells`,
    cells follow, and where sequences begin among `num_pages`. With a `reading` some rows choose their pages.
    """

    tables: tuple[torch.Tensor, ...]
    few_rows: int
    many_tokens: int
    num_pages: int
    has_places: bool = False
    has_cells: bool = False
    reading: Reading | None = None

    @property
    def num_sequences(self) -> int:
        return len(self.tables[3])


def plan_step(view: GroupView, device: torch.device, most_few_rows: int, page_tokens: int) -> Plan:
    """Of a view on the host. Raises ConfigError for slots that cannot be, and for rows that cannot choose pages."""
    has_places = any(each is not None for each in (view.positions, view.slots, view.ancestors))
    has_cells, tables, lengths = view.cell_starts is not None, tables_of(view), view.context_lengths
    if has_cells:
        if view.slots is not None or view.ancestors is not None:
            raise ConfigError("New tokens behind packed pages must follow one another.")
        lengths = lengths + _more_pages(view) * page_tokens
    elif has_places:
        tables = (*tables[:4], *_places(view), *tables[4:])
    counts = view.query_starts.diff()
    is_few = counts <= most_few_rows
    many = lengths[~is_few]
    tables = _on_device(tables, device)
    return Plan(
        tables,
        few_rows=int(counts[is_few].max()) if is_few.any() else 0,
        many_tokens=int(many.max()) if len(many) else 0,
        num_pages=num_pages_of(view),
        has_places=has_places and not has_cells,
        has_cells=has_cells,
        reading=Reading.of(view, tables[-1]),
    )


def plan_recorded(view: GroupView, few_rows: int, tables: tuple[torch.Tensor, ...], num_pages: int) -> Plan:
    """Of `tables` on the device whose contents change: sequences have up to `few_rows` rows, contexts any length.

    Whether pages are packed, and what is read of them at most, is as in `view`.
    """
    has_cells, reading = view.cell_starts is not None, Reading.of(view, tables[-1])
    return Plan(tables, few_rows, 0, num_pages, has_cells=has_cells, reading=reading)


def tables_of(view: GroupView) -> tuple[torch.Tensor, ...]:
    """On the host: those of `Plan`, but for rows; with readings of sequences as the last one, if there are any."""
    tables: tuple[torch.Tensor, ...]
    tables = (view.page_indices, view.page_starts, view.query_starts, view.context_lengths)
    if view.cell_starts is not None:
        tables = (*tables, view.cell_starts.flatten(), _split_starts(view))
    return tables if view.readings is None else (*tables, view.readings.flatten())


def num_pages_of(view: GroupView) -> int:
    """As `Plan` counts them."""
    return len(view.page_indices) if view.cell_starts is None else int(_split_starts(view)[-1])


def _split_starts(view: GroupView) -> torch.Tensor:
    counts = view.page_starts.diff() + _more_pages(view)
    return torch.nn.functional.pad(counts, (1, 0)).cumsum(0).int()


def _more_pages(view: GroupView) -> torch.Tensor:
    """How many pages more than are packed the head of each sequence has that has most of them: int32 [sequences]."""
    assert view.cell_starts is not None
    shares = view.cell_starts.shape[1] - 1
    num_packed = -(-view.cell_starts[:, -1] // shares)
    return (view.cell_starts.diff(dim=1).amax(dim=1) - num_packed).int()


def _places(view: GroupView) -> tuple[torch.Tensor, ...]:
    """The tables of rows; see `Plan`."""
    own = [slots_of(view, sequence) for sequence in range(len(view.context_lengths))]
    slots = torch.cat(own)
    windows, rows_by_slot, start = [], [], 0
    for each, length in zip(own, view.context_lengths.tolist(), strict=True):
        first = int(each.min()) if len(each) else length
        if len(each) and (first < 0 or int(each.max()) >= length):
            raise ConfigError(f"A new row lies in a slot that its page table does not have: of {length} slots.")
        rows = torch.full((length - first,), -1, dtype=torch.int32)
        rows[each - first] = torch.arange(len(each), dtype=torch.int32)
        if int((rows >= 0).sum()) < len(each):
            raise ConfigError("Two new rows of a sequence have one slot.")
        windows.append((first, start))
        rows_by_slot.append(rows)
        start += len(rows)
    positions = slots if view.positions is None else view.positions
    ancestors = torch.full((len(slots),), CHAIN, dtype=torch.int64) if view.ancestors is None else view.ancestors
    return (
        *(positions.int(), slots.int(), ancestors.contiguous()),
        *(torch.tensor(windows, dtype=torch.int32).flatten(), torch.cat(rows_by_slot)),
    )


def _on_device(tables: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """In one transfer, each where kernels expect tensors to start."""
    words = [each.view(torch.int32) for each in tables]
    padded = [torch.nn.functional.pad(each, (0, -len(each) % ALIGNED_ENTRIES)) for each in words]
    parts = torch.cat(padded).to(device).split([len(each) for each in padded])
    return tuple(part[: len(own)].view(each.dtype) for part, own, each in zip(parts, words, tables, strict=True))
