"""Builds what attention may see in one step from the page tables of the sequences in it."""

from collections.abc import Sequence

import numpy as np
import torch

from pagoda.cache.groups.cross import Entry
from pagoda.cache.groups.table import PageTable
from pagoda.cache.sequence import CachedSequence
from pagoda.kernels.base import GroupView


def build_views(
    sequences: Sequence[CachedSequence],
    num_new_tokens: Sequence[int],
    num_under_way: Sequence[int] | None = None,
    *,
    positions: torch.Tensor | None = None,
    ancestors: torch.Tensor | None = None,
) -> tuple[GroupView, ...]:
    """One view per layer group; sequence s adds `num_new_tokens[s]` tokens, whose pages must be reserved.

    They come after `num_under_way[s]` others, if any, that are computed before and not committed yet.
    `positions` and `ancestors` are those of `GroupView`, for rows that do not simply follow one another.
    """
    new_tokens = np.asarray(num_new_tokens, dtype=np.int32)
    query_starts = torch.from_numpy(_starts(new_tokens))
    num_added = num_new_tokens
    if num_under_way is not None:
        num_added = [before + new for before, new in zip(num_under_way, num_new_tokens, strict=True)]
    views = []
    for group in range(len(sequences[0].tables)):
        tables = [np.frombuffer(sequence.tables[group].pages, dtype=np.int32) for sequence in sequences]
        page_starts = _starts(np.asarray([len(table) for table in tables], dtype=np.int32))
        indices = torch.from_numpy(np.concatenate(tables))
        lengths = [each.tables[group].num_slots_after(new) for each, new in zip(sequences, num_added, strict=True)]
        context_lengths = torch.tensor(lengths, dtype=torch.int32)
        starts = torch.from_numpy(page_starts)
        is_compacted = any(sequence.tables[group].num_omitted for sequence in sequences)
        views.append(
            GroupView(
                *(indices, starts, query_starts, context_lengths),
                positions=positions,
                ancestors=ancestors,
                is_compacted=is_compacted,
                cell_starts=_cell_starts([sequence.tables[group] for sequence in sequences]),
            )
        )
    return tuple(views)


def build_encoder_view(entries: Sequence[Entry]) -> GroupView:
    """Encoder outputs one after the other, all of whose tokens are new."""
    lengths = np.asarray([entry.namespace.num_encoder_tokens for entry in entries], dtype=np.int32)
    page_starts = _starts(np.asarray([len(entry.pages) for entry in entries], dtype=np.int32))
    indices = np.asarray([page for entry in entries for page in entry.pages], dtype=np.int32)
    return GroupView(
        torch.from_numpy(indices),
        torch.from_numpy(page_starts),
        torch.from_numpy(_starts(lengths)),
        torch.from_numpy(lengths),
    )


def build_cuts(sequences: Sequence[CachedSequence]) -> list[list[tuple[int, int]]]:
    """Where the recurrent state of each sequence is copied on the way through its new tokens: (after, to slot)."""
    return [[(tokens - each.num_tokens, slot) for tokens, slot in each.tables[-1].cuts] for each in sequences]


def _cell_starts(tables: Sequence[PageTable]) -> torch.Tensor | None:
    """Of all sequences, if the pages of any are packed."""
    width = max(len(table.cell_starts) for table in tables)
    if not width:
        return None
    starts = np.zeros((len(tables), width), dtype=np.int32)
    for row, table in zip(starts, tables, strict=True):
        row[: len(table.cell_starts)] = table.cell_starts
    return torch.from_numpy(starts)


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], counts.cumsum()]).astype(np.int32)
