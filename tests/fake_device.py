"""Streams of a device that is not there: work waits until somebody must have it done, or a test says so.

A device may do what streams were given in any order that their events allow. So whoever forgot to wait finds, in some
order, bytes that are too old or too new.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from threading import RLock
from typing import Any

import torch

from pagoda.cache.transfers.device import Streams


class FakeEvent:
    """Over once its stream has come to it."""

    def __init__(self, stream: FakeStream) -> None:
        self.is_over = False
        self._stream = stream

    def wait(self) -> None:
        self._stream.run_until(self)


class FakeStream:
    """Work, and events that it waits for, in the order in which they were given."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._queue: deque[Callable[[], Any] | FakeEvent] = deque()

    def give(self, work: Callable[[], Any]) -> None:
        with self._lock:
            self._queue.append(work)

    def record(self) -> FakeEvent:
        event = FakeEvent(self)
        self.give(lambda: setattr(event, "is_over", True))
        return event

    def wait(self, event: Any) -> None:
        with self._lock:
            self._queue.append(event)

    def copy(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """As a device does, it refers to memory and keeps nobody from giving that to others."""
        for target, source in pairs:
            self.give(partial(ctypes.memmove, target.data_ptr(), source.data_ptr(), source.nbytes))

    def run_one(self) -> bool:
        """Do what is next; False if there is nothing, or it waits for another stream."""
        with self._lock:
            if not self._queue:
                return False
            first = self._queue[0]
            if isinstance(first, FakeEvent):
                if not first.is_over:
                    return False
                self._queue.popleft()
                return True
            self._queue.popleft()
            first()
            return True

    def run_until(self, event: FakeEvent) -> None:
        """Do as little as it takes, in this stream and others."""
        with self._lock:
            while not event.is_over:
                first = self._queue[0]
                if isinstance(first, FakeEvent):
                    first.wait()
                self.run_one()

    def run_all(self) -> None:
        with self._lock:
            while self._queue:
                self.run_until(self.record())


class AtOnce:
    """A stream that computes as soon as it is told to, as a processor does; it waits for events itself."""

    def record(self) -> FakeEvent:
        event = FakeEvent(FakeStream(RLock()))
        event.is_over = True
        return event

    def wait(self, event: Any) -> None:
        event.wait()


class FakePinning:
    """Notes what is pinned; refuses more than `most_nbytes`."""

    def __init__(self, most_nbytes: int = 1 << 40) -> None:
        self.pinned: dict[int, int] = {}
        self._most_nbytes = most_nbytes

    def pin(self, address: int, nbytes: int) -> None:
        if sum(self.pinned.values()) + nbytes > self._most_nbytes:
            raise OSError("too much is pinned")
        self.pinned[address] = nbytes

    def unpin(self, address: int) -> None:
        del self.pinned[address]


def fake_streams() -> Streams:
    """Three that are done in any order."""
    lock = RLock()
    return Streams(*(FakeStream(lock) for _ in range(3)))
