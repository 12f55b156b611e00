"""Steps recorded as CUDA graphs: the same launches on the same buffers, whatever page tables these hold.

Inputs and page tables of a step go to their buffers in one transfer, from pinned memory, but for what lies on the
device already. All graphs share one pool of memory, since they run one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch

from pagoda.kernels.base import GroupView
from pagoda.kernels.recording import RecordedStep, StepRecorder
from pagoda.kernels.triton.plan import Room, tables_of
from pagoda.kernels.triton.reading import Reading, whole_layer_of

if TYPE_CHECKING:
    from pagoda.kernels.triton.attention import TritonAttention

# Sequences that a step is padded to: up to these multiples of one, four and so on.
STEPS = ((2, 1), (16, 4), (64, 8), (256, 16))
LAST_STEP = 64
# Kernels are compiled for tensors that start at multiples of 16 bytes.
ALIGNED_NBYTES = 16


class GraphRecorder(StepRecorder):
    """Records steps that `attention` attends in."""

    # Most of a recording is logits, of which a large one has many megabytes.
    most_nbytes = 1 << 30
    runs_before = 1
    answers_later = True

    def __init__(self, attention: TritonAttention) -> None:
        self._attention = attention
        self._pool: Any = None
        # What was read of views of steps before, by kind: so that those who read more and less need no other recording.
        self._readings: dict[Hashable, list[Reading | None]] = {}

    def size_for(self, num_sequences: int) -> int:
        multiple = next((each for most, each in STEPS if num_sequences <= most), LAST_STEP)
        return -(-num_sequences // multiple) * multiple

    def kind_of(self, views: Sequence[GroupView]) -> Hashable:
        return tuple((view.cell_starts is None, view.readings is None, whole_layer_of(view) is None) for view in views)

    def record(
        self,
        step: Callable[..., torch.Tensor],
        inputs: Sequence[torch.Tensor],
        views: Sequence[GroupView],
        finite: torch.Tensor,
    ) -> RecordedGraph:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        kind = self.kind_of(views)
        before = self._readings.get(kind, [None] * len(views))
        recorded = RecordedGraph(self._attention, step, inputs, views, finite, self._pool, before)
        self._readings[kind] = recorded.readings
        return recorded


class RecordedGraph(RecordedStep):
    """`result` is that of the step it was made from until the first replay."""

    def __init__(
        self,
        attention: TritonAttention,
        step: Callable[..., torch.Tensor],
        inputs: Sequence[torch.Tensor],
        views: Sequence[GroupView],
        finite: torch.Tensor,
        pool: Any,
        before: Sequence[Reading | None],
    ) -> None:
        self._finite = finite
        self._room = [Room.of(view) for view in views]
        wanted = [room.tables(view) for view, room in zip(views, self._room, strict=True)]
        self._buffers = Buffers([*inputs, *chain.from_iterable(wanted)], finite.device)
        self._fill(inputs, views)
        given = iter(self._buffers.on_device)
        self._inputs = list(islice(given, len(inputs)))
        self._plans = [
            attention.record(view, tuple(islice(given, len(own))), room, before=reading)
            for view, own, room, reading in zip(views, wanted, self._room, before, strict=True)
        ]
        # Once as it is, which compiles what there is to compile and gives the first result.
        first = step(*self._inputs).clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._finite.fill_(1)
            self._replayed = step(*self._inputs)
        self.result = first
        self.nbytes = self._replayed.nbytes + self._buffers.nbytes

    @property
    def readings(self) -> list[Reading | None]:
        """What rows read at most, by view."""
        return [plan.reading for plan in self._plans]

    def takes(self, views: Sequence[GroupView]) -> bool:
        return all(
            room.takes(view) and (plan.reading is None or plan.reading.covers(view))
            for view, room, plan in zip(views, self._room, self._plans, strict=True)
        )

    def replay(self, inputs: Sequence[torch.Tensor], views: Sequence[GroupView], finite: torch.Tensor) -> torch.Tensor:
        self._fill(inputs, views)
        self._graph.replay()
        self.result = self._replayed
        if finite is not self._finite:
            finite.copy_(self._finite)
        return self._replayed

    def _fill(self, inputs: Sequence[torch.Tensor], views: Sequence[GroupView]) -> None:
        self._buffers.fill([*inputs, *chain.from_iterable(map(tables_of, views))])


class Buffers:
    """Tensors on the device in one run of bytes, of the sizes of `wanted`. They get what is no longer than that."""

    def __init__(self, wanted: Sequence[torch.Tensor], device: torch.device) -> None:
        starts, nbytes = [], 0
        for each in wanted:
            starts.append(nbytes)
            nbytes += -(-each.nbytes // ALIGNED_NBYTES) * ALIGNED_NBYTES
        self.nbytes = nbytes
        self._device = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        self._parts = [(start, each.nbytes, each.dtype) for start, each in zip(starts, wanted, strict=True)]
        self.on_device = self._divided(self._device)

    def fill(self, values: Sequence[torch.Tensor]) -> None:
        """Values on the host are as they are now, though they get there later."""
        # Another one each time: the transfer before may not have begun. Torch keeps memory that was waited for.
        host = torch.empty(self.nbytes, dtype=torch.uint8, pin_memory=not self._device.is_cpu)
        for place, each in zip(self._divided(host), values, strict=True):
            if each.is_cpu:
                place[: len(each)].copy_(each)
                place[len(each) :].zero_()
        self._device.copy_(host, non_blocking=True)
        for place, each in zip(self.on_device, values, strict=True):
            if not each.is_cpu:
                place[: len(each)].copy_(each)

    def _divided(self, run: torch.Tensor) -> list[torch.Tensor]:
        return [run[start : start + nbytes].view(dtype) for start, nbytes, dtype in self._parts]
