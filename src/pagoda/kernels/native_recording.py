"""Steps recorded on the native kernels: the operations of torch and the calls of the compiled module, as a list.

Every operation runs again on the buffers that it had. Does not know models; a step that looks at the numbers it
computes is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pagoda.kernels.base import GroupView
from pagoda.kernels.recording import RecordedStep, StepRecorder, UnrepeatableError

if TYPE_CHECKING:
    from pagoda.kernels.native import NativeKernels

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


class NativeRecorder(StepRecorder):
    """Records steps that `kernels` attend in."""

    keeps_queries = True

    def __init__(self, kernels: NativeKernels) -> None:
        self._kernels = kernels

    def record(
        self,
        step: Callable[..., torch.Tensor],
        inputs: Sequence[torch.Tensor],
        views: Sequence[GroupView],
        finite: torch.Tensor,
    ) -> Recording:
        return Recording(self._kernels, step, inputs, views, finite)


class Recording(RecordedStep):
    """A step as a list of calls on buffers that stay where they are; its result is one of them."""

    def __init__(
        self,
        kernels: NativeKernels,
        step: Callable[..., torch.Tensor],
        inputs: Sequence[torch.Tensor],
        views: Sequence[GroupView],
        finite: torch.Tensor,
    ) -> None:
        self._kernels = kernels
        self._inputs = [tensor.clone() for tensor in inputs]
        self._tables = [kernels.tables(view) for view in views]
        self._finite = finite.data_ptr()
        recorder = _Recorder(kernels, self._inputs)
        with kernels.noted(self._note(recorder)), recorder, _NoLeaks():
            self.result = step(*self._inputs)
        self._runs = recorder.runs()
        self._buffers = recorder.tensors
        self.nbytes = recorder.nbytes

    def replay(self, inputs: Sequence[torch.Tensor], views: Sequence[GroupView], finite: torch.Tensor) -> torch.Tensor:
        for buffer, tensor in zip(self._inputs, inputs, strict=True):
            buffer.copy_(tensor)
        self._tables[:] = [self._kernels.tables(view) for view in views]
        self._finite = finite.data_ptr()
        for run in self._runs:
            run()
        return self.result

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
        self._sizes = {_address(tensor): tensor.untyped_storage().nbytes() for tensor in inputs}

    @property
    def nbytes(self) -> int:
        """Of all that was made. What others made, such as weights, counts nothing, nor do views of it."""
        return sum(self._sizes.values())

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
        sizes = {_address(each): each.untyped_storage().nbytes() for each in made}
        self._sizes |= {place: sizes[place] for place in sizes.keys() - {_address(each) for each in given}}
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
