"""Streams, events and pinned memory of CUDA, through torch, as `device.py` and `pinned.py` ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch

from pagoda.cache.transfers.base import Event
from pagoda.cache.transfers.device import Streams

CUDA_SUCCESS = 0


class CudaEvent:
    """What was recorded in a stream."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    @property
    def is_over(self) -> bool:
        is_over: bool = self.event.query()
        return is_over

    def wait(self) -> None:
        self.event.synchronize()


class CudaStream:
    """A stream of torch's; threads that wait for it sleep if it `is_unhurried`, which takes them longer to notice."""

    def __init__(self, stream: torch.cuda.Stream, is_unhurried: bool = False) -> None:
        self._stream = stream
        self._is_unhurried = is_unhurried

    def record(self) -> Event:
        return _recorded(self._stream, self._is_unhurried)

    def wait(self, event: Event) -> None:
        assert isinstance(event, CudaEvent), "events of one device"
        self._stream.wait_event(event.event)

    def copy(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        # Pages may be tensors of inference mode, which only that may change.
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)


class ComputeStream:
    """The stream that the calling thread computes in: the thread that steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def record(self) -> Event:
        return _recorded(torch.cuda.current_stream(self._device))

    def wait(self, event: Event) -> None:
        assert isinstance(event, CudaEvent), "events of one device"
        torch.cuda.current_stream(self._device).wait_event(event.event)


class CudaPinning:
    """Registers memory with CUDA where it lies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def pin(self, address: int, nbytes: int) -> None:
        code = int(torch.cuda.cudart().cudaHostRegister(address, nbytes, 0))
        if code != CUDA_SUCCESS:
            with suppress(RuntimeError):  # else it would be told of whatever is launched next
                torch.ones(1, device=self._device)
            raise OSError(f"CUDA could not pin {nbytes} bytes of host memory (error {code})")

    def unpin(self, address: int) -> None:
        """A device that is lost has let go of it already."""
        torch.cuda.cudart().cudaHostUnregister(address)


def cuda_streams(device: torch.device) -> Streams:
    """Who waits for copies out writes to tiers, and has time; a sequence waits for copies in."""
    out, into = (torch.cuda.Stream(device) for _ in range(2))
    return Streams(ComputeStream(device), CudaStream(out, is_unhurried=True), CudaStream(into))


def _recorded(stream: torch.cuda.Stream, is_unhurried: bool = False) -> CudaEvent:
    event = torch.cuda.Event(blocking=is_unhurried)
    event.record(stream)
    return CudaEvent(event)
