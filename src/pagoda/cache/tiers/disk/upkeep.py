"""What can be done with a folder of pages while no server runs: look through it, check it, and clear it up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pagoda.cache.tiers.disk.folder import OVERHEAD_NBYTES, Folder
from pagoda.cache.tiers.disk.ledger import Place
from pagoda.cache.tiers.disk.log import SegmentLog, is_record_of
from pagoda.cache.tiers.disk.segment import load
from pagoda.cache.tiers.record import HEADER_NBYTES, Header, read_header
from pagoda.errors import PageRecordError, TierError


class Damage(NamedTuple):
    """Bytes of a segment that are no record: `key` is that of the record that should be there, if that is known."""

    file: Path
    start: int
    nbytes: int
    key: bytes | None


class StoredPages:
    """A folder that is there. Another process may write to it, but while it is `changed` here."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError or TierError if there is no such folder."""
        self._folder = Folder.existing(path)
        self._log = SegmentLog(self._folder, None)
        self._log.load()

    @property
    def nbytes(self) -> int:
        return self._log.nbytes + OVERHEAD_NBYTES

    @property
    def num_records(self) -> int:
        return len(self._log)

    @property
    def num_segments(self) -> int:
        return len(self._log.numbers)

    def headers(self) -> Iterator[Header]:
        """Of all records that are held, the oldest first, but for those whose header is damaged."""
        for number in self._log.numbers:
            yield from self._headers(number)

    def records(self) -> Iterator[memoryview]:
        """All that are held and are whole, the oldest first."""
        for key, place in self._places():
            record = self._log.read([place])[place]
            if record is not None and is_record_of(key, record):
                yield record

    def damages(self) -> Iterator[Damage]:
        """Reads all that there is."""
        for key, place in self._places():
            record = self._log.read([place])[place]
            if record is None or not is_record_of(key, record):
                yield Damage(self._folder.segment(place.segment), place.start, place.nbytes, key)
        for number in self._log.numbers:
            file = self._folder.segment(number)
            loaded = load(file)
            if not loaded.is_finished and loaded.nbytes > loaded.end:
                yield Damage(file, loaded.end, loaded.nbytes - loaded.end, None)

    def remove(self, is_unwanted: Callable[[Header], bool]) -> int:
        """Remove records; how many."""
        with self._changed():
            return sum(self._remove(number, is_unwanted) for number in self._log.numbers)

    def shrink(self, limit_nbytes: int) -> None:
        """Let the oldest go until the files take no more than that."""
        self._log = SegmentLog(self._folder, max(0, limit_nbytes - OVERHEAD_NBYTES))
        self._log.load()
        with self._changed():
            pass

    def _places(self) -> Iterator[tuple[bytes, Place]]:
        for number in self._log.numbers:
            yield from self._log.records(number)

    def _headers(self, number: int) -> Iterator[Header]:
        places = [Place(number, place.start, HEADER_NBYTES) for _, place in self._log.records(number)]
        for data in self._log.read(places).values():
            try:
                yield read_header(data or b"")
            except PageRecordError:
                continue

    def _remove(self, number: int, is_unwanted: Callable[[Header], bool]) -> int:
        """A record whose header is damaged goes, too."""
        wanted = {header.key for header in self._headers(number) if not is_unwanted(header)}
        return self._log.keep(number, wanted) if len(wanted) < len(self._log.records(number)) else 0

    @contextmanager
    def _changed(self) -> Iterator[None]:
        """Raises TierError where another process writes."""
        if not self._folder.lock():
            raise TierError(
                f"A server writes to {self._folder.path}; stop it first, as only one process may change it."
            )
        try:
            self._log.mend()
            yield
            self._log.finish()
            self._log.sync()
        finally:
            self._log.close()
            self._folder.unlock()
