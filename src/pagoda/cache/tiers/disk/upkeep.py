"""What can be done with a folder of pages while no server runs: look through it, check it, and clear it up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from pagoda.cache.tiers.disk.folder import OVERHEAD_NBYTES, Folder
from pagoda.cache.tiers.disk.ledger import Place
from pagoda.cache.tiers.disk.log import SegmentLog, is_record_of
from pagoda.cache.tiers.disk.parts import parts
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
    """A folder that is there, with the parts of tenants in it. Others may write to it, but while it is changed here."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError or TierError if there is no such folder."""
        self._parts = [_Part(each) for each in parts(path)]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._parts)

    @property
    def num_records(self) -> int:
        return sum(part.num_records for part in self._parts)

    @property
    def num_segments(self) -> int:
        return sum(part.num_segments for part in self._parts)

    def headers(self) -> Iterator[Header]:
        """Of all records that are held, those of each part from the oldest on, but for those that are damaged."""
        for part in self._parts:
            yield from part.headers()

    def records(self) -> Iterator[memoryview]:
        """All that are held and are whole, those of each part from the oldest on."""
        for part in self._parts:
            yield from part.records()

    def damages(self) -> Iterator[Damage]:
        """Reads all that there is."""
        for part in self._parts:
            yield from part.damages()

    def remove(self, is_unwanted: Callable[[Header], bool]) -> int:
        """Remove records; how many. Raises TierError where another process writes; then nothing is removed."""
        with self._changed():
            return sum(part.remove(is_unwanted) for part in self._parts)

    def shrink(self, limit_nbytes: int) -> None:
        """Let the oldest go until the files take no more than that; every part keeps its share. Raises as `remove`."""
        share = limit_nbytes / max(self.nbytes, 1)
        for part in self._parts:
            part.limit(int(part.nbytes * share))
        with self._changed():
            pass

    @contextmanager
    def _changed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for part in self._parts:
                stack.enter_context(part.locked())
            for part in self._parts:
                part.mend()
            yield
            for part in self._parts:
                part.finish()


class _Part:
    """One log of segments in a folder."""

    def __init__(self, path: Path) -> None:
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
        for number in self._log.numbers:
            yield from self._headers(number)

    def records(self) -> Iterator[memoryview]:
        for key, place in self._places():
            record = self._log.read([place])[place]
            if record is not None and is_record_of(key, record):
                yield record

    def damages(self) -> Iterator[Damage]:
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
        """While it is changed."""
        return sum(self._remove(number, is_unwanted) for number in self._log.numbers)

    def limit(self, limit_nbytes: int) -> None:
        """Let the oldest go, once it is mended, until the files take no more than that."""
        self._log = SegmentLog(self._folder, max(0, limit_nbytes - OVERHEAD_NBYTES))
        self._log.load()

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

    def mend(self) -> None:
        """Before it is changed; what is over the limit goes."""
        self._log.mend()

    def finish(self) -> None:
        self._log.finish()
        self._log.sync()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Raises TierError where another process writes."""
        if not self._folder.lock():
            raise TierError(
                f"A server writes to {self._folder.path}; stop it first, as only one process may change it."
            )
        try:
            yield
        finally:
            self._log.close()
            self._folder.unlock()
