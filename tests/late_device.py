"""A device that is not there, which computes as late as it may: what it is told waits in a stream until it is needed.

Tensors on it have shapes, and numbers only once the stream has come to them. Whatever the host changes too early, in
memory that a copy still reads or in buffers of a step that has not run, is seen by the results. Numbers that go there
in a way that waits for the device, as `torch.tensor(..., device=...)` does, are counted or refused.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from itertools import chain, islice
from threading import RLock, local
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fake_device import FakePinning, FakeStream
from pagoda.cache.pool import POISON, PagePool
from pagoda.cache.transfers.device import DeviceTransfers, Streams
from pagoda.cache.transfers.pinned import PinnedMemory
from pagoda.engine import exchange, pools
from pagoda.kernels.base import GroupView
from pagoda.kernels.recording import RecordedStep, StepRecorder
from pagoda.kernels.reference import ReferenceKernels
from pagoda.kernels.triton.graphs import Buffers
from pagoda.kernels.triton.plan import Room, tables_of
from pagoda.models.attention import PagedStep
from pagoda.models.model import Model

DEVICE = torch.device("meta")
TABLES = ("page_indices", "page_starts", "query_starts", "context_lengths")
ATEN = torch.ops.aten


class LateTensor(torch.Tensor):
    """`shape_of` has the shape and strides, `numbers` are there once the device has come to it."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    shape_of: torch.Tensor
    numbers: torch.Tensor
    card: LateDevice

    @staticmethod
    def __new__(cls, shape_of: torch.Tensor, card: LateDevice) -> LateTensor:
        made: LateTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, shape_of.shape, strides=shape_of.stride(), dtype=shape_of.dtype, device=DEVICE
        )
        made.shape_of, made.card = shape_of, card
        return made

    def __init__(self, *_: Any) -> None: ...

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} of the device, outside of it")

    def tolist(self) -> Any:
        return self.card.wait_for(self).tolist()


class LateDevice(TorchDispatchMode):
    """While it is entered, tensors on DEVICE are its own. With `seed` it runs now and then a little ahead of need."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._source = None if seed is None else random.Random(seed)
        lock = RLock()
        self.stream = FakeStream(lock)
        self.streams: Any = Streams(self.stream, FakeStream(lock), FakeStream(lock))  # type: ignore[arg-type]
        self.memory = PinnedMemory(FakePinning(), slab_nbytes=1 << 20)
        self.num_waits = 0
        self._threads = local()  # of which those that write to tiers may run it as well

    @property
    def is_running(self) -> bool:
        """Whether what is called is called by the device, late as it is."""
        return getattr(self._threads, "depth", 0) > 0

    @contextmanager
    def running(self) -> Iterator[None]:
        self._threads.depth = getattr(self._threads, "depth", 0) + 1
        try:
            with _disable_current_modes(), torch.inference_mode():
                yield
        finally:
            self._threads.depth -= 1

    def give(self, work: Callable[[], Any]) -> None:
        """Have something done, after all that it was told before."""

        def run() -> None:
            with self.running():
                work()

        self.stream.give(run)
        if self._source is not None:
            while self._source.random() < 0.4:
                self.stream.run_one()

    def holding(self, numbers: torch.Tensor) -> LateTensor:
        """A tensor on it that is there already."""
        with _disable_current_modes():
            late = LateTensor(torch.empty_like(numbers, device=DEVICE), self)
        late.numbers = numbers
        return late

    def wait_for(self, late: LateTensor) -> torch.Tensor:
        self.num_waits += 1
        self.stream.run_all()
        return late.numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
        lates = [each for each in tensors if isinstance(each, LateTensor)]
        on_device = kwargs.get("device") == DEVICE
        if not lates and not on_device:
            if func is ATEN.is_pinned.default:
                return False
            if func in (ATEN.pin_memory.default, ATEN._pin_memory.default):
                return args[0].clone()
            return func(*args, **{**kwargs, **({"pin_memory": False} if kwargs.get("pin_memory") else {})})
        if func._can_decompose():  # as inference mode leaves it to us
            with self:
                return func.decompose(*args, **kwargs)
        assert all(isinstance(each, LateTensor) or each.is_cpu for each in tensors), f"{func}: waits for the device"
        if func in (ATEN._local_scalar_dense.default, ATEN.equal.default):
            self.num_waits += 1
            self.stream.run_all()
            return func(*_numbers(args))
        moves = _moves(func, args, kwargs)
        if moves is Moves.NOWHERE and any(each.dim() for each in tensors if not isinstance(each, LateTensor)):
            raise AssertionError(f"{func} of numbers of the host")
        result = self._later(func, args, kwargs, moves)
        if moves is not Moves.NOWHERE and not (kwargs.get("non_blocking") or True in args[2:3]):
            self.num_waits += 1
            self.stream.run_all()
        return result

    def _later(self, func: Any, args: Any, kwargs: Any, moves: Moves) -> Any:
        if moves is Moves.BACK and func is ATEN.copy_.default:
            self.give(lambda: func(*_numbers(args)))
            return args[0]
        with torch.inference_mode():
            there = {**kwargs, **({"device": DEVICE} if "device" in kwargs else {})}
            shapes = func(*tree_map(_shape, args), **tree_map(_shape, there))
        leaves, structure = tree_flatten(shapes)
        writes = [each for each, value in zip(args, func._schema.arguments, strict=False) if _is_written(value)]
        made = writes[:1] if writes else [LateTensor(each, self) for each in leaves]
        ours = {**kwargs, **({"device": "cpu"} if "device" in kwargs else {})}
        ours = {name: value for name, value in ours.items() if name not in ("pin_memory", "non_blocking")}

        def work() -> None:
            found = tree_flatten(func(*_numbers(args), **_numbers(ours)))[0]
            for late, numbers in zip(made, found, strict=True):
                late.numbers = numbers

        self.give(work)
        if moves is Moves.BACK:
            self.stream.run_all()
            return made[0].numbers
        return tree_unflatten(made, structure)


class Moves(Enum):
    """Which way numbers go in a copy."""

    THERE = "there"
    BACK = "back"
    NOWHERE = "nowhere"


def _moves(func: Any, args: Any, kwargs: Any) -> Moves:
    if func is ATEN.copy_.default:
        source, target = isinstance(args[1], LateTensor) or not args[1].dim(), isinstance(args[0], LateTensor)
    elif func is ATEN._to_copy.default:
        source = isinstance(args[0], LateTensor)
        target = source if kwargs.get("device") is None else kwargs["device"] == DEVICE
    else:
        return Moves.NOWHERE
    return Moves.NOWHERE if source == target else Moves.THERE if target else Moves.BACK


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _shape(value: Any) -> Any:
    if isinstance(value, LateTensor):
        return value.shape_of
    return torch.empty_like(value, device=DEVICE) if isinstance(value, torch.Tensor) and value.dim() else value


def _numbers(values: Any) -> Any:
    return tree_map(lambda each: each.numbers if isinstance(each, LateTensor) else each, values)


class LateKernels(ReferenceKernels):
    """The definition, over the tables that recorded steps have on the device."""

    def __init__(self, card: LateDevice) -> None:
        self.recorded: dict[GroupView, GroupView] = {}
        self._recorder = LateRecorder(card, self)

    @property
    def recorder(self) -> StepRecorder:
        return self._recorder

    def store(self, key: Any, value: Any, layer: Any, view: GroupView, finite: Any = None) -> None:
        super().store(key, value, layer, self.recorded.get(view, view), None if finite is None else finite.numbers)

    def attend(self, query: Any, layer: Any, view: GroupView, *arguments: Any) -> torch.Tensor:
        return super().attend(query, layer, self.recorded.get(view, view), *arguments)


class LateRecorder(StepRecorder):
    answers_later = True
    runs_before = 0

    def __init__(self, card: LateDevice, kernels: LateKernels) -> None:
        self._card, self._kernels = card, kernels

    def size_for(self, num_sequences: int) -> int:
        return -(-num_sequences // 2) * 2

    def kind_of(self, views: Sequence[GroupView]) -> Hashable:
        return tuple((view.readings is None, view.cell_starts is None) for view in views)

    def record(
        self, step: Callable[..., torch.Tensor], inputs: Any, views: Sequence[GroupView], finite: Any
    ) -> RecordedStep:
        return LateStep(self._card, self._kernels, step, (inputs, views, finite))


class LateStep(RecordedStep):
    """As a recorded graph: buffers for inputs and tables, and results that the next replay overwrites."""

    nbytes = 0

    def __init__(self, card: LateDevice, kernels: LateKernels, step: Callable[..., torch.Tensor], given: Any) -> None:
        inputs, views, self._finite = given
        self._card, self._step, self._views = card, step, views
        self._room = [Room.of(view) for view in views]
        wanted = [room.tables(view) for view, room in zip(views, self._room, strict=True)]
        self._buffers = Buffers([*inputs, *chain.from_iterable(wanted)], DEVICE)
        self._fill(inputs, views)
        card.stream.run_all()
        numbers = iter([each.numbers for each in self._buffers.on_device])
        self._inputs = list(islice(numbers, len(inputs)))
        for view, own in zip(views, wanted, strict=True):
            tables = list(islice(numbers, len(own)))
            readings = None if view.readings is None else tables.pop().view(-1, 2)
            cells = None if view.cell_starts is None else tables[4].view(len(view.context_lengths), -1)
            plain = dict(zip(TABLES, tables[: len(TABLES)], strict=True))
            kernels.recorded[view] = replace(view, **plain, readings=readings, cell_starts=cells)
        first = self._computed().clone()
        self.result = card.holding(first)
        self._replayed = card.holding(torch.empty_like(first))

    def takes(self, views: Sequence[GroupView]) -> bool:
        return all(room.takes(view) for view, room in zip(views, self._room, strict=True))

    def replay(self, inputs: Any, views: Sequence[GroupView], finite: Any) -> torch.Tensor:
        self._fill(inputs, views)
        self._card.give(lambda: self._replayed.numbers.copy_(self._computed()))
        if finite is not self._finite:
            finite.copy_(self._finite)
        return self._replayed

    def _fill(self, inputs: Any, views: Sequence[GroupView]) -> None:
        self._buffers.fill([*inputs, *chain.from_iterable(map(tables_of, views))])

    def _computed(self) -> torch.Tensor:
        with self._card.running():
            self._finite.numbers.fill_(1)
            return self._step(*self._inputs)


@contextmanager
def late_device(monkeypatch: pytest.MonkeyPatch, seed: int | None = None) -> Iterator[LateDevice]:
    """Engines that are made and stepped inside, with LateKernels, run on it."""
    card = LateDevice(seed)
    forward, init = Model.forward, PagedStep.__init__

    def computed(self: Model, *arguments: Any) -> torch.Tensor:
        if card.is_running:
            return forward(self, *arguments)
        card.stream.run_all()
        with card.running():
            return card.holding(forward(self, *_numbers(arguments)))

    def begun(self: PagedStep, *arguments: Any) -> None:
        init(self, *arguments)
        self.finite = card.holding(self.finite)

    def prepare(self: PagePool, page: int) -> None:
        self._transfers.before_change(page)
        card.give(lambda: self.pages[page].fill_(POISON))

    def copy(self: PagePool, source: int, target: int) -> None:
        self._transfers.before_change(target)
        card.give(lambda: self.pages[target].copy_(self.pages[source]))

    def transfers_on(device: torch.device, host_nbytes: int) -> Any:
        card.memory.reserve(min(host_nbytes, 1 << 20))
        return lambda pages: DeviceTransfers(pages, card.streams, card.memory)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "forward", computed)
        patch.setattr(PagedStep, "__init__", begun)
        patch.setattr(PagePool, "prepare", prepare)
        patch.setattr(PagePool, "copy", copy)
        patch.setattr(pools, "transfers_on", transfers_on)
        patch.setattr(exchange, "ComputeStream", lambda device: card.stream)
        with card:
            yield card
