"""Decode steps recorded once and replayed: the same operations on the same buffers, without the layers' Python.

What a CUDA graph is for a GPU's launches: while weights stream through the caches, the Python of some hundred modules
costs a fifth of a step. Knows operations, not models. A forward that looks at the numbers it computes is never
replayed, and no recording is used before it once gave the very logits of the forward it was made from.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pagoda.kernels.base import Kernels
from pagoda.kernels.native import NativeKernels
from pagoda.models.attention import PagedStep

logger = logging.getLogger(__name__)

# The recordings of an engine together keep at most this much memory.
MAX_BUFFER_NBYTES = 64 << 20
# Steps of a size before one is recorded: to record and to prove it takes as long as is saved in about as many.
RUNS_BEFORE = 8

# Python may have looked at their results or shapes, or they differ from one time to the next.
_UNREPEATABLE_TAGS = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}
# These hand numbers to Python past the dispatcher.
_LEAKS = {"tolist", "numpy", "__array__", "__dlpack__"}
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
_CONVERSIONS = {torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default}
# Where the compiled module takes page tables, and where `store` takes the flags of sequences.
_TABLES, _FINITE = 3, 4

Run = Callable[[], object]
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # token ids, positions, rows of logits


class PackedModel(Protocol):
    """See `Model.forward`."""

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor, step: PagedStep
    ) -> torch.Tensor: ...


class UnrepeatableError(Exception):
    """Another run of the forward might do something else."""


class DecodeSteps:
    """The forward of decode steps, by number of sequences: run a few times, then recorded, proved, and replayed.

    Logits are good until the next step.
    """

    def __init__(self, model: PackedModel, kernels: Kernels) -> None:
        self._model = model
        self._kernels = kernels
        # By sequences and threads, the longest unused first.
        self._recordings: dict[tuple[int, int], Recording] = {}
        self._num_runs: Counter[tuple[int, int]] = Counter()  # of those that are not recorded
        self.are_repeatable = isinstance(kernels, NativeKernels)

    @torch.inference_mode()
    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor, step: PagedStep
    ) -> torch.Tensor:
        """`Model.forward` of a step that computes one token of every sequence and its logits."""
        inputs = (token_ids, positions, logit_rows)
        key = (len(token_ids), torch.get_num_threads())
        if not self.are_repeatable:
            return self._model.forward(*inputs, step)
        if key not in self._recordings:
            self._num_runs[key] += 1
            if self._num_runs[key] <= RUNS_BEFORE:
                return self._model.forward(*inputs, step)
            del self._num_runs[key]
            return self._record(key, inputs, step)
        recording = self._recordings[key] = self._recordings.pop(key)
        if recording.is_proved:
            return recording.replay(inputs, step)
        logits = self._model.forward(*inputs, step)
        if not logits.isnan().any():  # which equals nothing
            recording.is_proved = torch.equal(recording.replay(inputs, step), logits)
            if not recording.is_proved:
                self._give_up("a replayed step gave other logits")
        return logits

    def _record(self, key: tuple[int, int], inputs: Inputs, step: PagedStep) -> torch.Tensor:
        assert isinstance(self._kernels, NativeKernels)
        try:
            recording = Recording(self._model, self._kernels, inputs, step)
        except Exception as error:  # whatever a family does that cannot be recorded; its own errors come again below
            self._give_up(repr(error))
            return self._model.forward(*inputs, step)
        self._recordings[key] = recording
        while sum(each.nbytes for each in self._recordings.values()) > MAX_BUFFER_NBYTES:
            del self._recordings[next(iter(self._recordings))]
        return recording.logits

    def _give_up(self, reason: str) -> None:
        self.are_repeatable = False
        self._recordings.clear()
        logger.info("Decode steps of this model run the Python of its layers: %s", reason)


class Recording:
    """One decode step as a list of calls on buffers that stay where they are, and its `logits`, one of them."""

    def __init__(
        self,
        model: PackedModel,
        kernels: NativeKernels,
        inputs: Inputs,
        step: PagedStep,
    ) -> None:
        self.is_proved = False
        self._kernels = kernels
        token_ids, positions, logit_rows = self._inputs = tuple(tensor.clone() for tensor in inputs)
        self._tables = [kernels.tables(view) for view in step.views]
        self._finite = step.finite.data_ptr()
        recorder = _Recorder(kernels, self._inputs)
        with kernels.noted(self._note(recorder)), recorder, _NoLeaks():
            self.logits = model.forward(token_ids, positions, logit_rows, step)
        self._runs = recorder.runs()
        self._buffers = recorder.tensors
        self.nbytes = sum({_address(each): each.untyped_storage().nbytes() for each in self._buffers}.values())

    def replay(self, inputs: Sequence[torch.Tensor], step: PagedStep) -> torch.Tensor:
        """The logits of another step with as many sequences."""
        for buffer, tensor in zip(self._inputs, inputs, strict=True):
            buffer.copy_(tensor)
        self._tables[:] = [self._kernels.tables(view) for view in step.views]
        self._finite = step.finite.data_ptr()
        for run in self._runs:
            run()
        return self.logits

    def _note(self, recorder: _Recorder) -> Callable[[Callable[..., None], tuple[Any, ...]], None]:
        """What takes the calls of the compiled module. Two arguments belong to the step, not to the recording."""
        first_tables = list(self._tables)

        def note(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
            group = next((i for i, tables in enumerate(first_tables) if tables is arguments[_TABLES]), None)
            if group is None:
                recorder.add(lambda: function(*arguments))
                return
            before, after = arguments[:_TABLES], arguments[_TABLES + 1 :]
            if arguments[_FINITE] == self._finite:
                recorder.add(lambda: function(*before, self._tables[group], self._finite, *after[1:]))
            else:
                recorder.add(lambda: function(*before, self._tables[group], *after))

        return note


class _Recorder(TorchDispatchMode):
    """Notes the operations of torch in a forward, and what is added between them."""

    def __init__(self, kernels: NativeKernels, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors = list(inputs)
        self._kernels = kernels
        self._runs: list[tuple[Run, set[int]]] = []  # with the storages that a constant's result is in
        self._varying = {_address(tensor) for tensor in inputs}
        self._changed: set[int] = set()

    def add(self, run: Run) -> None:
        self._runs.append((run, set()))

    def runs(self) -> list[Run]:
        """What must run again: not what gives the same every time, unless that is written to later."""
        return [run for run, constants in self._runs if not constants or constants & self._changed]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _is_repeatable(func, args):
            raise UnrepeatableError(str(func))
        result = func(*args, **kwargs)
        given, made = _tensors((args, kwargs)), _tensors(result)
        self.tensors += made
        if func._schema.is_mutable:
            written = {_address(tensor) for tensor in _written(func, args, kwargs)}
            self._changed |= written
            self._varying |= written
            self.add(lambda: func(*args, **kwargs))
        elif func._schema.name.removeprefix("aten::") in _ALLOCATIONS:
            self._varying |= {_address(tensor) for tensor in made}
        else:
            self._add_result(func, args, kwargs, given, made)
        return result

    def _add_result(
        self, func: Any, args: Any, kwargs: Any, given: list[torch.Tensor], made: list[torch.Tensor]
    ) -> None:
        sources = {_address(tensor) for tensor in given}
        fresh = [tensor for tensor in made if _address(tensor) not in sources]
        if not fresh:
            return  # views of what is filled anyway
        places = {_address(tensor) for tensor in fresh}
        if sources & self._varying:
            self._varying |= places
            places = set()
        run = self._own(func, args, kwargs, made) or _again(func, args, kwargs, fresh, made)
        self._runs.append((run, places))

    def _own(self, func: Any, args: Any, kwargs: Any, made: list[torch.Tensor]) -> Run | None:
        """By our kernels, whose threads wait for work: the sums of residuals, and logits that are made fp32."""
        kernels = self._kernels
        if func is torch.ops.aten.add.Tensor and not kwargs and isinstance(args[1], torch.Tensor):
            first, second = args
            return (lambda: kernels.add(first, second, made[0])) if kernels.takes_sum(first, second) else None
        if func in _CONVERSIONS and kernels.takes_widening(args[0], made[0]):
            return lambda: kernels.widen(args[0], made[0])
        return None


class _NoLeaks(TorchFunctionMode):
    """Refuses what the dispatcher does not see."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _LEAKS:
            raise UnrepeatableError(func.__name__)
        return func(*args, **(kwargs or {}))


def _again(func: Any, args: Any, kwargs: Any, fresh: list[torch.Tensor], made: list[torch.Tensor]) -> Run:
    """What computes the results once more, into the same tensors."""
    into = getattr(func._overloadpacket, "out", None)
    if into is not None and len(made) == len(fresh) == 1:
        try:
            into(*args, **kwargs, out=fresh[0])
        except (TypeError, RuntimeError):  # other arguments than the operation's
            into = None
        else:
            return lambda: into(*args, **kwargs, out=fresh[0])
    places = [index for index, tensor in enumerate(made) if any(tensor is each for each in fresh)]

    def run() -> None:
        results = _tensors(func(*args, **kwargs))
        for tensor, index in zip(fresh, places, strict=True):
            tensor.copy_(results[index])

    return run


def _is_repeatable(func: Any, args: Any) -> bool:
    if func is torch.ops.aten.index.Tensor:  # a mask would decide by its values how many it picks
        return all(index is None or index.dtype is torch.long for index in args[1])
    if func is torch.ops.aten.dropout.default:
        return not args[2]
    return not _UNREPEATABLE_TAGS & set(func.tags)


def _written(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors that an operation changes."""
    schema = func._schema.arguments
    given = dict(zip((argument.name for argument in schema), args, strict=False)) | kwargs
    return _tensors([given.get(each.name) for each in schema if each.alias_info and each.alias_info.is_write])


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
