"""Pages in the memory of a device: copied beside its computing, by streams of their own, one for each direction.

Work in a stream is done in its order; nothing else orders streams but events. `compute` is what the thread that steps
tells to compute, `out` copies pages to the host, `into` copies them from there. The rules:

1. A page is copied out as it is when `read` is called: `out` waits for all that `compute` was told until then.
2. A page that is being copied out is not changed: before `compute` is told to change it (`before_change`), it waits for
   the last copy of that page.
3. A page is copied into once all is done that was told of it before: `into` waits for the moment `after`, which was
   taken after the page was given to whoever loads it. By rule 2 that is after the last copy out of it, too.
4. Nobody computes with a page that is on its way in: whoever loads it waits, on the host, for the event of `write`
   before it says that the page is there. What is told to `compute` after that comes after the copy.
5. A page that was on its way in and is not wanted any more is given up once that copy has ended, which who calls a load
   off waits for, too.
6. The host's side of a copy is left alone until it is over: whoever reads waits for the event before it looks at a
   body, and arrays are held here until then, so that nobody else gets their memory.

An open page that is copied out may be filled further meanwhile: rows that are written never change, and those behind
them are blanked in the copy. Rules 1 to 3 and 6 are kept here, 4 and 5 by `residency`. Copies are to and from pinned
memory alone: bodies that lie elsewhere go through some. Knows streams as what can wait, copy and record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pagoda.cache.transfers.base import Event, PageCopy
from pagoda.cache.transfers.pinned import PinnedMemory


class Stream(Protocol):
    """Takes work, and does it later and in its order."""

    def record(self) -> Event:
        """Over once all is done that the stream was given before."""

    def wait(self, event: Event) -> None:
        """Work that is given later begins once `event` is over."""


class CopyStream(Stream, Protocol):
    """Takes copies, from any thread."""

    def copy(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Copy bytes between the device and pinned memory: to the first of each pair from the second."""


class Streams(NamedTuple):
    """Those of one device."""

    compute: Stream
    out: CopyStream
    into: CopyStream


class DeviceTransfers:
    """Of `pages`, uint8 [num_pages, page_nbytes] on a device. Arrays for their copies are of `memory`."""

    def __init__(self, pages: torch.Tensor, streams: Streams, memory: PinnedMemory) -> None:
        self._pages = pages
        self._compute, self._out, self._into = streams
        self._memory = memory
        self._leaving: dict[int, Event] = {}  # the last copy out of each page, until it is over
        self._read: deque[_Copying] = deque()
        self._written: deque[_Copying] = deque()
        self._lock = Lock()  # of what is written

    def memory(self, nbytes: int) -> NDArray[np.uint8]:
        return self._memory.take(nbytes)

    def read(self, copies: Sequence[PageCopy]) -> Event:
        self._let_go_of_read()
        self._out.wait(self._compute.record())
        self._out.copy([(torch.from_numpy(body), self._pages[page]) for page, body in copies])
        copying = _Copying(self._out.record(), copies)
        self._leaving.update(dict.fromkeys(copying.pages, copying.event))
        self._read.append(copying)
        return copying

    def before_change(self, page: int) -> None:
        event = self._leaving.pop(page, None)
        if event is not None:
            self._compute.wait(event)

    def moment(self) -> Event:
        return self._compute.record()

    def write(self, copies: Sequence[PageCopy], after: Event) -> Event:
        copies = [PageCopy(page, self._pinned(body)) for page, body in copies]
        self._into.wait(after)
        self._into.copy([(self._pages[page], torch.from_numpy(body)) for page, body in copies])
        copying = _Copying(self._into.record(), copies)
        with self._lock:
            while self._written and self._written[0].is_over:
                self._written.popleft()
            self._written.append(copying)
        return copying

    def close(self) -> None:
        with suppress(RuntimeError):  # of a device that is lost, on which nothing moves any more
            for copying in (*self._read, *self._written):
                copying.wait()
        self._read.clear()
        self._written.clear()
        self._leaving.clear()

    def _let_go_of_read(self) -> None:
        while self._read and self._read[0].is_over:
            copying = self._read.popleft()
            for page in copying.pages:
                if self._leaving.get(page) is copying.event:
                    del self._leaving[page]

    def _pinned(self, body: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._memory.holds(body):
            return body
        copy = self._memory.take(body.nbytes)
        copy[:] = body
        return copy


class _Copying:
    """The event of some copies, whose arrays are held until somebody has waited for it."""

    def __init__(self, event: Event, copies: Sequence[PageCopy]) -> None:
        self.event = event
        self.pages = [page for page, _ in copies]
        self._copies = copies

    @property
    def is_over(self) -> bool:
        return self.event.is_over

    def wait(self) -> None:
        self.event.wait()
        self._copies = ()
