"""The compiled module of one instruction set, and the calls that are made of it.

Knows how to find it and what this machine has of it. Does not know what a call computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from pagoda.errors import KernelUnavailableError
from pagoda.kernels.native_arguments import NativeArguments

if TYPE_CHECKING:
    from pagoda.kernels import _native

Note = Callable[[Callable[..., None], tuple[Any, ...]], None]


def compiled() -> Any:
    """The compiled module, or an error that says why there is none."""
    try:
        from pagoda.kernels import _native
    except ImportError as error:
        raise KernelUnavailableError(
            f"The native kernels are not part of this installation ({error}). Reinstall pagoda-kv with a C++ compiler "
            "at hand, or select the reference kernels."
        ) from error
    return _native


def instruction_sets() -> tuple[str, ...]:
    """What this build can use on this machine, best first."""
    return tuple(compiled().instruction_sets())


def read_bandwidth(
    nbytes: int = 1 << 28, num_threads: int | None = None, repeats: int = 5, in_huge_pages: bool = True
) -> float:
    """The rate at which threads together read memory, in GB/s: the limit of decode steps."""
    threads = num_threads or torch.get_num_threads()
    rate: float = compiled().read_bandwidth(nbytes, threads, repeats, in_huge_pages)
    return rate


def allocate(nbytes: int) -> torch.Tensor:
    """Zeros, uint8 [nbytes], in huge pages where the system grants them; takes no memory before it is touched."""
    return torch.from_numpy(compiled().allocate(nbytes))


class NativeCalls:
    """Calls of the compiled module. `isa` forces an instruction set; None takes the best of this machine."""

    def __init__(self, isa: str | None = None) -> None:
        self._native = compiled()
        self._note: Note | None = None
        self._told = NativeArguments(self._native)
        available = instruction_sets()
        if isa is not None and isa not in available:
            raise KernelUnavailableError(
                f"There are no native kernels for instruction set {isa!r} here; choose one of: {', '.join(available)}."
            )
        self.isa = isa or available[0]
        self._kernels: _native.Kernels = self._native.Kernels(self.isa)

    def peak_rate(self) -> float:
        """Multiplications of bf16 by bf16 a second of all threads, with nothing else to do: the limit of prefill."""
        return self._kernels.peak_rate(torch.get_num_threads())

    @contextmanager
    def noted(self, note: Note) -> Iterator[None]:
        """Inside the block, hand every call of the compiled module to `note` before it is made: function, arguments.

        Arguments are numbers and descriptions, which stay good while the tensors they are about live.
        """
        self._note = note
        try:
            yield
        finally:
            self._note = None

    def _run(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._note is not None:
            self._note(function, arguments)
        function(*arguments)
