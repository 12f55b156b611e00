"""Brings the records that one sequence waits for into its pages, on other threads, and may be called off at any time.

A record is checked before a byte of it is copied. Once a load is called off nothing is written any more, so its pages
can be used for something else at once. That it has ended is said once all copies have (rules 4 and 5 of
`transfers/device.py`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pagoda.cache.tiers.base import Tier
from pagoda.cache.tiers.record import Bytes, Cipher, Label, read_record
from pagoda.cache.transfers.base import Event, PageCopy, page_copies
from pagoda.errors import PageRecordError, TierError

if TYPE_CHECKING:
    from pagoda.cache.cache import PageStore

logger = logging.getLogger(__name__)

# So much of one load is read at once by one thread.
CHUNK_NBYTES = 8 << 20
# So much of it is copied into pages at once, while it is in the caches of whoever checked it.
COPY_NBYTES = 1 << 20


class Place(NamedTuple):
    """Pages are in `store`, and were given to whoever loads them before the moment `after`."""

    store: PageStore
    after: Event


@dataclass(frozen=True)
class Part:
    """The record of `label` is to be read from `tier` into each of `targets` there, as many pages as it has each."""

    label: Label
    tier: Tier
    place: Place
    targets: Sequence[Sequence[int]]

    @property
    def nbytes(self) -> int:
        """Of the pages of one target."""
        return len(self.targets[0]) * self.place.store.page_nbytes


class Load:
    """The parts that one sequence waits for; `on_end` is called on another thread once none is left."""

    def __init__(self, parts: Sequence[Part], cipher: Cipher | None, on_end: Callable[[], None]) -> None:
        self._cipher = cipher
        self._on_end = on_end
        self._lock = Lock()
        self._is_off = False
        self._failed: dict[Label, str] = {}
        self._copying: list[Event] = []
        self._chunks = _chunks(parts)
        self._num_left = len(self._chunks)
        self.num_parts = len(parts)
        self.nbytes = Counter[str]()  # read, by tier
        self.begun = monotonic()
        self.ended: float | None = None

    @property
    def is_done(self) -> bool:
        return self.ended is not None

    @property
    def failed(self) -> dict[Label, str]:
        """What could not be read, and why."""
        return self._failed

    def begin(self, executor: Executor) -> None:
        """Read on the threads of `executor`."""
        if not self._chunks:
            self._end()
        for chunk in self._chunks:
            executor.submit(self._read, chunk)

    def call_off(self) -> None:
        """Write nothing any more; returns once that is so."""
        with self._lock:
            self._is_off = True
        for event in self._copying:
            event.wait()

    def _read(self, chunk: Sequence[Part]) -> None:
        try:
            self._read_from(chunk[0].tier, chunk)
        except Exception as error:
            logger.exception("Reading from the %s tier failed", chunk[0].tier.name)
            self._failed |= {part.label: f"it could not be read: {error}" for part in chunk}
        finally:
            with self._lock:
                self._num_left -= 1
                is_last = not self._num_left
            if is_last:
                self._end()

    def _read_from(self, tier: Tier, chunk: Sequence[Part]) -> None:
        if self._is_off:
            return
        try:
            records = tier.get([part.label.key for part in chunk])
        except (OSError, TierError) as error:
            self._failed |= {part.label: f"it could not be read: {error}" for part in chunk}
            return
        damaged, events, ready = list[bytes](), list[Event](), _Ready()
        for part, record in zip(chunk, records, strict=True):
            if record is None:
                self._failed[part.label] = "it is gone"
                continue
            try:
                ready.add(part, record, self._cipher)
            except PageRecordError as error:
                self._failed[part.label] = f"{error.field}: {error}"
                damaged.append(part.label.key)
            if ready.nbytes >= COPY_NBYTES:
                events += self._copy(tier, ready)
                ready = _Ready()
        events += self._copy(tier, ready)
        for event in events:
            event.wait()
        if damaged:
            tier.damaged(damaged)

    def _copy(self, tier: Tier, ready: _Ready) -> list[Event]:
        with self._lock:
            if self._is_off:
                return []
            for place, copies in ready.copies.items():
                self._copying.append(place.store.write(copies, place.after))
            self.nbytes[tier.name] += ready.nbytes
            return self._copying[-len(ready.copies) :] if ready.copies else []

    def _end(self) -> None:
        self.ended = monotonic()
        self._on_end()


class _Ready:
    """What was checked and is to be copied, out of records of `nbytes`."""

    def __init__(self) -> None:
        self.copies: dict[Place, list[PageCopy]] = {}
        self.nbytes = 0

    def add(self, part: Part, data: Bytes, cipher: Cipher | None) -> None:
        """Raises PageRecordError if a record is not what it should be."""
        record = read_record(data, cipher)
        record.check_is(part.label)
        if len(record.body) != part.nbytes:
            raise PageRecordError("nbytes", f"its pages have {len(record.body)} bytes, and {part.nbytes} belong there")
        body, copies = np.frombuffer(record.body, np.uint8), self.copies.setdefault(part.place, [])
        for pages in part.targets:
            copies += page_copies(pages, body, part.place.store.page_nbytes)
        self.nbytes += len(data)


def _chunks(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts of one tier together, up to `CHUNK_NBYTES`."""
    chunks: list[list[Part]] = []
    nbytes = 0
    for part in parts:
        if not chunks or chunks[-1][0].tier is not part.tier or nbytes + part.nbytes > CHUNK_NBYTES:
            chunks.append([])
            nbytes = 0
        chunks[-1].append(part)
        nbytes += part.nbytes
    return chunks
