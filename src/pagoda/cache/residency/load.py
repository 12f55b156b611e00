"""Brings the records that one sequence waits for into its pages, on other threads, and may be called off at any time.

A record is checked before a byte of it is copied. Once a load is called off nothing is written any more, so its pages
can be used for something else at once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from threading import Lock
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from pagoda.cache.tiers.base import Tier
from pagoda.cache.tiers.record import Bytes, Cipher, Label, read_record
from pagoda.errors import PageRecordError, TierError

logger = logging.getLogger(__name__)

# So much of one load is read at once by one thread.
CHUNK_NBYTES = 8 << 20


@dataclass(frozen=True)
class Part:
    """The record of `label` is to be read from `tier` into each of `targets`, as many pages as it has each."""

    label: Label
    tier: Tier
    targets: Sequence[Sequence[NDArray[np.uint8]]]

    @property
    def nbytes(self) -> int:
        """Of the pages of one target."""
        return sum(page.nbytes for page in self.targets[0])


class Load:
    """The parts that one sequence waits for; `on_end` is called on another thread once none is left."""

    def __init__(self, parts: Sequence[Part], cipher: Cipher | None, on_end: Callable[[], None]) -> None:
        self._cipher = cipher
        self._on_end = on_end
        self._lock = Lock()
        self._is_off = False
        self._failed: dict[Label, str] = {}
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
        damaged = []
        for part, record in zip(chunk, records, strict=True):
            if record is None:
                self._failed[part.label] = "it is gone"
                continue
            try:
                self._copy(part, record)
            except PageRecordError as error:
                self._failed[part.label] = f"{error.field}: {error}"
                damaged.append(part.label.key)
        if damaged:
            tier.damaged(damaged)

    def _copy(self, part: Part, data: Bytes) -> None:
        record = read_record(data, self._cipher)
        record.check_is(part.label)
        if len(record.body) != part.nbytes:
            raise PageRecordError("nbytes", f"its pages have {len(record.body)} bytes, and {part.nbytes} belong there")
        body = np.frombuffer(record.body, np.uint8)
        with self._lock:
            if self._is_off:
                return
            for target in part.targets if len(body) else ():  # pages of nothing cannot be written to
                start = 0
                for page in target:
                    page[:] = body[start : start + page.nbytes]
                    start += page.nbytes
            self.nbytes[part.tier.name] += len(data)

    def _end(self) -> None:
        self.ended = monotonic()
        self._on_end()


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
