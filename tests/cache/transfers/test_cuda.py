"""What is asked of torch for copies beside a GPU's computing, of a torch that has none: which calls, in which order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from pagoda.cache.transfers.base import PageCopy
from pagoda.cache.transfers.cuda import CudaPinning, cuda_streams
from pagoda.cache.transfers.device import DeviceTransfers
from pagoda.cache.transfers.pinned import PinnedMemory

DEVICE = torch.device("cuda", 0)
NBYTES = 64


class Torch:
    """Streams are names. Copies are made at once, in the stream that is current."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.current = Stream(self, "compute")
        self.streams: list[Stream] = []
        self.code = 0

    def new_stream(self, device: torch.device) -> Stream:
        assert device == DEVICE
        self.streams.append(Stream(self, ("out", "into")[len(self.streams)]))
        return self.streams[-1]

    def new_event(self, blocking: bool = False) -> Event:
        return Event(self, blocking)

    def current_stream(self, device: torch.device) -> Stream:
        assert device == DEVICE
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        self.calls.append(("copies", stream.name))
        yield
        self.current = before

    def cudart(self) -> Any:
        return self

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802
        assert address % 4096 == nbytes % 4096 == flags == 0
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.calls.append(("unpinned", address % 4096))
        return 0


class Stream:
    def __init__(self, torch: Torch, name: str) -> None:
        self._torch = torch
        self.name = name

    def wait_event(self, event: Event) -> None:
        self._torch.calls.append((self.name, "waits for", event.stream))


class Event:
    def __init__(self, torch: Torch, is_unhurried: bool) -> None:
        self._torch = torch
        self.is_unhurried = is_unhurried
        self.stream = ""

    def record(self, stream: Stream) -> None:
        self.stream = stream.name
        assert self.is_unhurried == (self.stream == "out")

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self._torch.calls.append(("host", "waits for", self.stream))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Torch:
    fake = Torch()
    monkeypatch.setattr(torch.cuda, "Stream", fake.new_stream)
    monkeypatch.setattr(torch.cuda, "Event", fake.new_event)
    for name in ("current_stream", "stream", "cudart"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    return fake


def test_pages_go_out_and_come_in_beside_the_computing(calls: Torch) -> None:
    memory = PinnedMemory(CudaPinning(DEVICE))
    pages = torch.arange(4 * NBYTES, dtype=torch.uint8).view(4, NBYTES)
    transfers = DeviceTransfers(pages, cuda_streams(DEVICE), memory)
    copies = [PageCopy(page, transfers.memory(NBYTES)) for page in (1, 3)]
    transfers.read(copies).wait()
    assert [body.tolist() for _, body in copies] == pages[[1, 3]].tolist()
    transfers.before_change(3)
    pages.zero_()
    transfers.write(copies, transfers.moment()).wait()
    assert [body.tolist() for _, body in copies] == pages[[1, 3]].tolist()
    transfers.close()
    assert calls.calls == [
        ("out", "waits for", "compute"),
        ("copies", "out"),
        ("host", "waits for", "out"),
        ("compute", "waits for", "out"),
        ("into", "waits for", "compute"),
        ("copies", "into"),
        ("host", "waits for", "into"),
        ("host", "waits for", "out"),  # once more, to be sure that nothing is on its way
        ("host", "waits for", "into"),
    ]
    del copies, transfers, memory
    assert calls.calls[-1] == ("unpinned", 0)


def test_memory_that_cuda_does_not_pin_lies_elsewhere(
    calls: Torch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls.code = 2

    def told_of_it(size: int, device: torch.device) -> None:
        calls.calls.append(("launched", size, device))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch, "ones", told_of_it)
    memory = PinnedMemory(CudaPinning(DEVICE))
    with pytest.raises(OSError, match="CUDA could not pin 67108864 bytes of host memory"):
        memory.reserve(1)
    assert not memory.holds(memory.take(100))
    assert calls.calls == [("launched", 1, DEVICE)] * 2
    assert "copies from the device are slow" in caplog.text
