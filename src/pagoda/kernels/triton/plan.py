"""What one step of packed sequences looks like to kernels: tables on the device, and bounds that size launches.

Bounds come from lengths on the host, or are given where a step is recorded to be replayed with others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

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

    No sequence of few has more rows than `few_rows`, none of many more pages than `many_pages`; zero if there are none
    of a kind. All together have `num_pages` at most, of packed ones as many as the head has that has most.

    If it `has_places`, tables of rows follow: positions, slots and ancestors; of each sequence its first slot with a
    new row, and where the rows by slot, -1 for none, begin that the last table has from there on. If it `has_cells`,
    cells follow, and where sequences begin among `num_pages`. With a `reading` some rows choose their pages.
    """

    tables: tuple[torch.Tensor, ...]
    few_rows: int
    many_pages: int
    num_pages: int
    has_places: bool = False
    has_cells: bool = False
    reading: Reading | None = None

    @property
    def num_sequences(self) -> int:
        return len(self.tables[3])


@dataclass(frozen=True)
class Room:
    """How many pages the tables of a view may list, how many that may be as `Plan` counts them, and of one sequence."""

    num_entries: int
    num_pages: int
    most_pages: int

    @classmethod
    def of(cls, view: GroupView) -> Self:
        """For the view, and for half as much again."""
        spare = len(view.context_lengths)
        return cls(*(_room_for(count + spare) for count in _counts_of(view)))

    def takes(self, view: GroupView) -> bool:
        own = self.num_entries, self.num_pages, self.most_pages
        return all(count <= room for count, room in zip(_counts_of(view), own, strict=True))

    def tables(self, view: GroupView) -> tuple[torch.Tensor, ...]:
        """As those of `view`, with room for more pages."""
        return view.page_indices.new_zeros(self.num_entries), *tables_of(view)[1:]


def plan_step(view: GroupView, device: torch.device, most_few_rows: int) -> Plan:
    """Of a view on the host. Raises ConfigError for slots that cannot be, and for rows that cannot choose pages."""
    has_places = any(each is not None for each in (view.positions, view.slots, view.ancestors))
    has_cells, tables = view.cell_starts is not None, tables_of(view)
    if has_cells and (view.slots is not None or view.ancestors is not None):
        raise ConfigError("New tokens behind packed pages must follow one another.")
    if has_places and not has_cells:
        tables = (*tables[:4], *_places(view), *tables[4:])
    counts, num_pages = view.query_starts.diff(), _split_starts(view).diff()
    is_few = counts <= most_few_rows
    tables = _on_device(tables, device)
    return Plan(
        tables,
        few_rows=int(counts[is_few].max()) if is_few.any() else 0,
        many_pages=0 if is_few.all() else int(num_pages[~is_few].max()),
        num_pages=int(num_pages.sum()),
        has_places=has_places and not has_cells,
        has_cells=has_cells,
        reading=Reading.of(view, tables[-1]),
    )


def plan_recorded(view: GroupView, tables: tuple[torch.Tensor, ...], room: Room, few_rows: int, are_few: bool) -> Plan:
    """Of `tables` on the device whose contents change: sequences have up to `few_rows` rows, be they few or many.

    Whether pages are packed, and what is read of them at most, is as in `view`.
    """
    return Plan(
        tables,
        few_rows=few_rows if are_few else 0,
        many_pages=0 if are_few else room.most_pages,
        num_pages=room.num_pages,
        has_cells=view.cell_starts is not None,
        reading=Reading.of(view, tables[-1]),
    )


def tables_of(view: GroupView) -> tuple[torch.Tensor, ...]:
    """On the host: those of `Plan`, but for rows; with readings of sequences as the last one, if there are any."""
    tables: tuple[torch.Tensor, ...]
    tables = (view.page_indices, view.page_starts, view.query_starts, view.context_lengths)
    if view.cell_starts is not None:
        tables = (*tables, view.cell_starts.flatten(), _split_starts(view))
    return tables if view.readings is None else (*tables, view.readings.flatten())


def _counts_of(view: GroupView) -> tuple[int, int, int]:
    """As `Room` has them."""
    starts = _split_starts(view)
    return len(view.page_indices), int(starts[-1]), int(starts.diff().max())


def _room_for(wanted: int) -> int:
    """Room to grow by half: a power of two, or three quarters of one."""
    power = 1 << (wanted - 1).bit_length()
    return power if wanted > power * 3 // 4 else power * 3 // 4


def _split_starts(view: GroupView) -> torch.Tensor:
    """Where sequences begin among all pages, counting those that most of a packed one's heads have."""
    if view.cell_starts is None:
        return view.page_starts
    counts = view.page_starts.diff() + _more_pages(view.cell_starts)
    return torch.nn.functional.pad(counts, (1, 0)).cumsum(0).int()


def _more_pages(cell_starts: torch.Tensor) -> torch.Tensor:
    """How many pages more than are packed the head of each sequence has that has most of them: int32 [sequences]."""
    shares = cell_starts.shape[1] - 1
    num_packed = -(-cell_starts[:, -1] // shares)
    return (cell_starts.diff(dim=1).amax(dim=1) - num_packed).int()


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
