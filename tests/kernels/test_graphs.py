"""What recorded steps for a card keep on the host and the device, as far as no card is needed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from kernels.interpreted import GraphRecorder, TritonAttention
from pagoda.kernels.base import GroupView
from pagoda.kernels.triton.graphs import Buffers
from pagoda.kernels.triton.plan import Room


def view(num_pages: int, num_sequences: int = 2) -> GroupView:
    numbers = torch.arange(num_sequences + 1, dtype=torch.int32)
    pages, starts = torch.arange(num_pages, dtype=torch.int32), numbers * num_pages // num_sequences
    return GroupView(pages, starts, numbers, numbers[1:])


def test_sizes_grow_with_the_batch_and_are_few():
    sizes = [GraphRecorder(TritonAttention()).size_for(count) for count in range(1, 1025)]
    assert all(size >= count for count, size in enumerate(sizes, 1))
    assert all(size - count <= max(3, count / 2) for count, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) < 40
    assert sizes[:5] == [1, 2, 4, 4, 8]


@pytest.mark.parametrize("num_pages", [1, 2, 5, 6, 7, 100, 1000, 4097])
def test_tables_have_room_to_grow_and_not_much_more(num_pages):
    room = Room.of(view(num_pages))
    assert num_pages + 2 <= room.num_entries <= 2 * (num_pages + 2)
    assert room.num_pages == room.num_entries
    assert (num_pages + 1) // 2 + 2 <= room.most_pages <= room.num_pages


def test_packed_pages_need_room_for_what_the_longest_head_has():
    pages, starts = torch.arange(10, dtype=torch.int32), torch.tensor([0, 7, 10], dtype=torch.int32)
    cells = torch.tensor([[0, 7, 8], [0, 0, 0]], dtype=torch.int32)  # of the heads of four packed pages one has seven
    packed = replace(view(10), page_indices=pages, page_starts=starts, cell_starts=cells)
    room = Room.of(packed)
    assert room.takes(packed)
    assert replace(room, num_pages=13).takes(packed)
    assert not replace(room, num_pages=12).takes(packed)
    assert replace(room, num_pages=12).takes(replace(packed, cell_starts=None))


def test_buffers_hold_what_they_are_given_where_kernels_expect_it():
    tables = [*Room(6, 6, 6).tables(view(4)), *Room(12, 12, 12).tables(view(9))]
    given = [torch.arange(3), torch.arange(5), *tables]
    buffers = Buffers(given, torch.device("cpu"))
    assert all(each.data_ptr() % 16 == buffers.on_device[0].data_ptr() % 16 for each in buffers.on_device)
    shorter = view(3)
    values = [torch.tensor([7, 8, 9]), torch.tensor([1, 2, 3, 4, 5])]
    values += [shorter.page_indices, shorter.page_starts, shorter.query_starts, shorter.context_lengths]
    values += [each + 100 for each in (view(9).page_indices, *values[3:])]
    buffers.fill(values)
    for place, value in zip(buffers.on_device, values, strict=True):
        assert place[: len(value)].tolist() == value.tolist()
        assert not place[len(value) :].any()
    ends = [each.data_ptr() + each.nbytes for each in buffers.on_device]
    starts = [each.data_ptr() for each in buffers.on_device]
    assert all(end <= start for end, start in zip(ends, itertools.islice(starts, 1, None), strict=False))
