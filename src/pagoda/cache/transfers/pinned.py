"""Host memory that a device may copy to and from by itself: pinned in large slabs, given out as arrays.

Pinning takes the system a millisecond for some megabytes, so slabs stay pinned and are divided: each into slots of one
size, until it is empty again. A slot comes back by itself when nobody refers to its array any more. Knows neither CUDA
nor pages: how memory is pinned is given.
"""

from __future__ import annotations

import logging
import mmap
from bisect import bisect_right, insort
from collections import deque
from contextlib import suppress
from threading import Lock
from typing import Protocol
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

# Slabs are so large at least and at most, and between that a share of what is pinned in all: a slab wastes what is left
# beside its slots, up to half of it where two do not fit.
SLAB_NBYTES = 64 << 20
MOST_SLAB_NBYTES = 256 << 20
SLAB_SHARE = 16
# Slots are multiples of this, and of a 64th of the power of two below their size: tails of all lengths share slabs.
LEAST_STEP_NBYTES = 64
STEPS_PER_DOUBLING = 64


class Pinning(Protocol):
    """Lets a device reach memory of the host."""

    def pin(self, address: int, nbytes: int) -> None:
        """Raises OSError if the system refuses."""

    def unpin(self, address: int) -> None: ...


def slab_nbytes(host_nbytes: int) -> int:
    """The size of slabs where so much is pinned in all."""
    wanted = min(max(host_nbytes // SLAB_SHARE, SLAB_NBYTES), MOST_SLAB_NBYTES)
    return -(-wanted // mmap.PAGESIZE) * mmap.PAGESIZE


class PinnedMemory:
    """Pins by `pinning` as much as is asked for; of slabs that are empty it keeps one, and those that it `reserve`d.

    What the system does not let it pin lies in other memory, which takes longer to copy. May be asked by any thread.
    """

    def __init__(self, pinning: Pinning, slab_nbytes: int = SLAB_NBYTES) -> None:
        self._pinning = pinning
        self._slab_nbytes = slab_nbytes
        self._num_reserved = 0
        self._empty: list[_Slab] = []
        self._with_room: dict[int, list[_Slab]] = {}  # by the size of their slots
        self._spans: list[tuple[int, int]] = []  # of all slabs: first address, and the one behind the last
        self._freed: deque[tuple[_Slab, int]] = deque()
        self._lock = Lock()
        self._is_refused = False

    @property
    def nbytes(self) -> int:
        """Of all slabs."""
        return sum(stop - start for start, stop in self._spans)

    def reserve(self, nbytes: int) -> None:
        """Pin so much now, to be kept. Raises OSError if the system refuses."""
        with self._lock:
            for _ in range(-(-nbytes // self._slab_nbytes)):
                self._empty.append(self._new_slab(self._slab_nbytes))
                self._num_reserved += 1

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """An array of so many bytes of any content, whose memory is nobody else's until it is gone."""
        slot_nbytes = _slot_nbytes(nbytes)
        with self._lock:
            self._collect()
            slab = self._slab_with_room(slot_nbytes)
            if slab is None:
                return np.empty(nbytes, np.uint8)
            start = slab.free.pop()
            if not slab.free:
                self._with_room[slot_nbytes].remove(slab)
        array = np.frombuffer(slab.memory, np.uint8, nbytes, start)
        # Views of an array refer to it and not to what lies behind, since that is no array.
        finalize(array, self._give_back, slab, start).atexit = False
        return array

    def holds(self, array: NDArray[np.uint8]) -> bool:
        """Whether an array lies in pinned memory."""
        address = _address(array)
        with self._lock:
            index = bisect_right(self._spans, (address, 1 << 64)) - 1
            return index >= 0 and address + array.nbytes <= self._spans[index][1]

    def _slab_with_room(self, slot_nbytes: int) -> _Slab | None:
        slabs = self._with_room.setdefault(slot_nbytes, [])
        if slabs:
            return slabs[-1]
        is_large = slot_nbytes > self._slab_nbytes
        slab = self._further_slab(slot_nbytes) if is_large or not self._empty else self._empty.pop()
        if slab is not None:
            slab.divide(slot_nbytes)
            slabs.append(slab)
        return slab

    def _give_back(self, slab: _Slab, start: int) -> None:
        """An array is gone. Whoever holds the lock may be who has it go, and collects it next time."""
        self._freed.append((slab, start))
        if self._lock.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._lock.release()

    def _collect(self) -> None:
        """Take back the slots of arrays that are gone."""
        while self._freed:
            slab, start = self._freed.popleft()
            slabs = self._with_room[slab.slot_nbytes]
            if not slab.free:
                slabs.append(slab)
            slab.free.append(start)
            if len(slab.free) == slab.num_slots:
                slabs.remove(slab)
                self._keep_empty(slab)

    def _keep_empty(self, slab: _Slab) -> None:
        if slab.nbytes == self._slab_nbytes and len(self._empty) <= self._num_reserved:
            self._empty.append(slab)
        else:
            self._spans.remove((slab.address, slab.address + slab.nbytes))
            slab.unpin()

    def _further_slab(self, slot_nbytes: int) -> _Slab | None:
        """One beyond what was reserved; none once the system has refused one."""
        if self._is_refused:
            return None
        try:
            return self._new_slab(max(slot_nbytes, self._slab_nbytes))
        except OSError as error:
            logger.warning("No more host memory can be pinned, so that copies from the device are slow: %s", error)
            self._is_refused = True
            return None

    def _new_slab(self, nbytes: int) -> _Slab:
        slab = _Slab(-(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE, self._pinning)
        insort(self._spans, (slab.address, slab.address + slab.nbytes))
        return slab


class _Slab:
    """Pinned memory of its own, which is unpinned when it is gone, if not before. `free` are starts of slots."""

    def __init__(self, nbytes: int, pinning: Pinning) -> None:
        """Raises OSError if the system refuses."""
        self.nbytes = nbytes
        self.memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # of a system without huge pages
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        # After a fork the first write to a page would move it away from where the device copies to.
        self.memory.madvise(mmap.MADV_DONTFORK)
        self.address = _address(np.frombuffer(self.memory, np.uint8))
        self.slot_nbytes = self.num_slots = 0
        self.free: list[int] = []
        pinning.pin(self.address, nbytes)
        self.unpin = finalize(self, _unpin, pinning, self.memory, self.address)
        self.unpin.atexit = False

    def divide(self, slot_nbytes: int) -> None:
        self.slot_nbytes, self.num_slots = slot_nbytes, self.nbytes // slot_nbytes
        self.free = [slot_nbytes * number for number in reversed(range(self.num_slots))]


def _unpin(pinning: Pinning, memory: mmap.mmap, address: int) -> None:  # noqa: ARG001 - it is there until then
    pinning.unpin(address)


def _address(array: NDArray[np.uint8]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _slot_nbytes(nbytes: int) -> int:
    step = max(LEAST_STEP_NBYTES, (1 << max(nbytes, 1).bit_length() - 1) // STEPS_PER_DOUBLING)
    return max(-(-nbytes // step), 1) * step
