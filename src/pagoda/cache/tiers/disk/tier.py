"""A tier on disk: a log of segments that outlives the process, with an index of it in memory.

A page that was not written whole, or that was damaged since, is a miss, so nothing waits for a sync. Memory and files
may disagree after any error but in one way: a record of which memory does not know.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, RLock, Thread

from pagoda.cache.tiers.base import Put, Tier, TierSettings, TierStats
from pagoda.cache.tiers.disk.folder import OVERHEAD_NBYTES, Folder
from pagoda.cache.tiers.disk.ledger import Entry, Place
from pagoda.cache.tiers.disk.log import SegmentLog, is_record_of
from pagoda.cache.tiers.disk.segment import NOTE_NBYTES, note
from pagoda.cache.tiers.record import Bytes, read_header
from pagoda.errors import ConfigError, PageRecordError, TierError

REFRESH_SECONDS = 1.0
LEAST_LIMIT_NBYTES = 1 << 16


class DiskTier(Tier):
    """The folder is written by this process if it has its lock, and else only read.

    `_writing` is held by whoever changes files. `_lock` is of the counts.
    """

    def __init__(self, folder: Folder, limit_nbytes: int | None) -> None:
        self._folder = folder
        self._limit_nbytes = limit_nbytes
        self._log = self._new_log()
        self._lock = Lock()
        self._writing = RLock()
        self._counts: Counter[str] = Counter()
        self._fault: str | None = None
        self._refresher: Thread | None = None
        self._refreshed_seconds = 0.0

    @classmethod
    def open(cls, settings: TierSettings) -> DiskTier:
        limit = settings.limit_nbytes
        if limit is not None and limit < LEAST_LIMIT_NBYTES:
            raise ConfigError(
                f"A disk tier of {limit} bytes holds no page; give it at least {LEAST_LIMIT_NBYTES} bytes."
            )
        tier = cls(Folder.open(Path(settings.where)), limit)
        try:
            tier._start()
        except OSError as error:
            tier._folder.unlock()
            raise TierError(
                f"The folder {settings.where} cannot be used: {error.strerror}; mend that, or name another folder."
            ) from error
        return tier

    @property
    def name(self) -> str:
        return "disk"

    @property
    def is_read_only(self) -> bool:
        """Whether this process may not write there."""
        return self._fault is not None

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        log = self._log
        held = [key in log for key in keys]
        if self.is_read_only and not all(held):
            self._refresh_soon()
        return held

    def get(self, keys: Sequence[bytes]) -> list[Bytes | None]:
        log = self._log
        places = log.use(keys)
        if self.is_read_only and None in places:
            self._refresh_soon()
        with self._counting_errors():
            records = log.read([place for place in places if place is not None])
        found: list[Bytes | None] = [
            None if place is None else self._checked(log, key, place, records[place])
            for key, place in zip(keys, places, strict=True)
        ]
        self._count("read_nbytes", sum(len(record) for record in found if record is not None))
        return found

    def use(self, keys: Sequence[bytes]) -> None:
        self._log.use(keys)

    def put(self, records: Sequence[Put]) -> list[bool]:
        with self._writing, self._counting_errors():
            return [self._put(each) for each in records]

    def drop(self, keys: Sequence[bytes]) -> None:
        with self._writing, self._counting_errors():
            for key in keys:
                if key in self._log and not self.is_read_only:
                    self._drop(key)

    def clear(self) -> None:
        with self._writing, self._counting_errors():
            if not self.is_read_only:
                self._log.clear()

    def stats(self) -> TierStats:
        with self._lock:
            counts = dict(self._counts)
        return TierStats(
            num_records=len(self._log),
            nbytes=self._log.nbytes + OVERHEAD_NBYTES,
            limit_nbytes=self._limit_nbytes,
            fault=self._fault,
            **counts,
        )

    def flush(self) -> None:
        with self._writing, self._counting_errors():
            if not self.is_read_only:
                self._log.sync()

    def close(self) -> None:
        refresher = self._refresher
        if refresher is not None:
            refresher.join()
        with self._writing, suppress(OSError):
            if not self.is_read_only:
                self._log.finish()
                self._log.sync()
        self._log.close()
        self._folder.unlock()

    def _new_log(self) -> SegmentLog:
        limit = self._limit_nbytes
        return SegmentLog(self._folder, None if limit is None else limit - OVERHEAD_NBYTES)

    def _start(self) -> None:
        """Read what is there, as the one who writes if nobody else is."""
        self._fault = self._lock_folder()
        self._log.load()
        if not self.is_read_only:
            self._log.mend()
        self._refreshed_seconds = time.monotonic()

    def _lock_folder(self) -> str | None:
        """Why it is only read; None if it may be written."""
        try:
            if self._folder.lock():
                return None
        except OSError as error:
            return f"The folder {self._folder.path} cannot be written to ({error.strerror}): its pages are only read."
        return f"Another process writes to {self._folder.path}: its pages are only read."

    def _refresh_soon(self) -> None:
        """See what the process that writes has done since, at most once a second, and not while somebody waits."""
        with self._lock:
            now = time.monotonic()
            if now - self._refreshed_seconds < REFRESH_SECONDS:
                return
            self._refreshed_seconds = now
            self._refresher = Thread(target=self._refresh, name="pagoda-disk-refresh", daemon=True)
            self._refresher.start()

    def _refresh(self) -> None:
        with self._writing, suppress(OSError), self._counting_errors():
            if not self.is_read_only:
                return  # it took over while this thread waited, and would find its own lock
            fault = self._lock_folder()
            if fault is None:
                self._take_over()
            else:
                self._log.load()
            self._fault = fault

    def _take_over(self) -> None:
        """Whoever wrote is gone."""
        log = self._new_log()
        try:
            log.load()
            log.mend()
        except OSError:
            self._folder.unlock()
            raise
        self._log = log

    def _put(self, put: Put) -> bool:
        key, record = put
        (held,) = self._log.use([key])
        if held is not None:
            return True
        if self.is_read_only or not self._log.takes(record.nbytes) or not _begins_record(key, record):
            self._count("num_refused")
            return False
        num_dropped = self._log.append(Entry(key, record.nbytes), record)
        self._count("num_dropped", num_dropped)
        self._count("written_nbytes", record.nbytes)
        return True

    def _drop(self, key: bytes) -> None:
        self._log.forget(key)
        self._count("num_dropped", self._log.append(Entry(key, NOTE_NBYTES, is_drop=True), note(key)))

    def _checked(self, log: SegmentLog, key: bytes, place: Place, record: memoryview | None) -> memoryview | None:
        """None, and it is held no more, if it is not what was put there."""
        if record is not None and is_record_of(key, record):
            return record
        is_gone = record is None and self.is_read_only  # whoever writes has given it up
        if log.forget(key, place) and not is_gone:
            self._count("num_damaged")
        return None

    def _count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self._counts[what] += number

    @contextmanager
    def _counting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._count("num_errors")
            raise


def _begins_record(key: bytes, record: memoryview) -> bool:
    """Whether what follows in the log could be found behind it."""
    try:
        header = read_header(record)
    except PageRecordError:
        return False
    return (header.key, header.record_nbytes) == (key, record.nbytes)
