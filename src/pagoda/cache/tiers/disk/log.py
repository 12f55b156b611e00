"""A log of segments in a folder: the ledger and the files together.

Memory and files may disagree after an error in one way alone: a file may have what the ledger does not know. Whoever
changes files takes turns with others who do (`tier.py`); reading needs no turn.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Container, Sequence
from contextlib import suppress
from threading import Lock

from pagoda.cache.tiers.disk.folder import Folder
from pagoda.cache.tiers.disk.ledger import Entry, Place, SegmentLedger, SegmentSizes
from pagoda.cache.tiers.disk.segment import FOOTER_NBYTES, ROW_NBYTES, SegmentWriter, load, opened, read
from pagoda.cache.tiers.record import Bytes, check_record
from pagoda.errors import PageRecordError


class SegmentLog:
    """All methods raise OSError. No file is touched under `_lock`, so nobody waits long for it."""

    def __init__(self, folder: Folder, limit_nbytes: int | None) -> None:
        self._folder = folder
        self._ledger = SegmentLedger(SegmentSizes.for_limit(limit_nbytes, ROW_NBYTES, FOOTER_NBYTES))
        self._lock = Lock()
        self._writer: SegmentWriter | None = None
        self._unsynced: set[int] = set()
        self._unfinished: set[int] = set()

    def __len__(self) -> int:
        return len(self._ledger)

    def __contains__(self, key: bytes) -> bool:
        return key in self._ledger

    @property
    def nbytes(self) -> int:
        return self._ledger.nbytes

    def load(self) -> None:
        """Learn what is there now that was not, or is no longer."""
        present = self._folder.segments()
        if any(number < self._ledger.next_number for number in set(present).difference(self._ledger.numbers)):
            self._start_over()
        for number in set(self._ledger.numbers).difference(present):
            self._forget_segment(number)
        known = set(self._ledger.numbers)
        for number in present:
            if number not in known or number in self._unfinished:
                self._load(number, is_known=number in known)

    def mend(self) -> None:
        """Become the one that writes: remove what is over the limit, cut off torn tails, finish what was not."""
        for number in self._ledger.numbers:
            if not self._ledger.entries_nbytes(number):
                self.remove(number)
            elif number in self._unfinished:
                self._ledger.reserve_footer(number)
        while self._ledger.is_over:
            self._retire()
        for number in sorted(self._unfinished):
            self._write_footer(number, self._open_writer(number))
        self._go_on()

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of all segments, the oldest first."""
        return self._ledger.numbers

    def records(self, number: int) -> list[tuple[bytes, Place]]:
        """What a segment holds."""
        with self._lock:
            return self._ledger.records(number)

    def use(self, keys: Sequence[bytes]) -> list[Place | None]:
        """Where records lie, which count as used now."""
        with self._lock:
            return [self._ledger.find(key) if self._ledger.use(key) else None for key in keys]

    def read(self, places: Sequence[Place]) -> dict[Place, memoryview | None]:
        """What lies there, if anything does. It is not checked."""
        by_segment: defaultdict[int, list[Place]] = defaultdict(list)
        for place in places:
            by_segment[place.segment].append(place)
        found: dict[Place, memoryview | None] = {}
        for number, group in by_segment.items():
            with opened(self._folder.segment(number)) as descriptor:
                found.update(zip(group, read(descriptor, group), strict=True))
        return found

    def takes(self, nbytes: int) -> bool:
        return self._ledger.takes(nbytes)

    def append(self, entry: Entry, data: Bytes) -> int:
        """Write an entry, for which older ones may have to go: how many did."""
        num_dropped = 0
        while not self._ledger.has_room(entry.nbytes):
            num_dropped += self._retire()
        self._append(entry, data)
        return num_dropped

    def forget(self, key: bytes, place: Place | None = None) -> bool:
        """Hold this record no more, or only that at `place`; whether it was held."""
        with self._lock:
            found = self._ledger.find(key)
            if found is None or place not in (None, found):
                return False
            self._ledger.forget(key)
            return True

    def clear(self) -> None:
        for number in self._ledger.numbers:
            self.remove(number)

    def remove(self, number: int) -> int:
        """Give up a segment; how many records went with it."""
        self._close_if_open(number)
        self._folder.remove(number)
        return self._forget_segment(number)

    def keep(self, number: int, keys: Container[bytes]) -> int:
        """Give up a segment but for the records of these keys, which are written again; how many records went."""
        return self._give_up(number, [each for each in self.records(number) if each[0] in keys])

    def finish(self) -> None:
        """Append no more to the segment that is open."""
        number, writer = self._ledger.open_number, self._writer
        if number is None or writer is None:
            return
        self._writer = None
        with self._lock:
            self._ledger.finish()
        self._write_footer(number, writer)

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        for number in tuple(self._unsynced):
            with suppress(FileNotFoundError):
                descriptor = os.open(self._folder.segment(number), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(descriptor)
                finally:
                    os.close(descriptor)
            self._unsynced.discard(number)
        self._folder.sync()

    def close(self) -> None:
        """Let go of the file that is open, as it is."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _start_over(self) -> None:
        """The folder was emptied, and numbers began again: nothing that is known of old ones is worth anything."""
        with self._lock:
            self._ledger = SegmentLedger(self._ledger.sizes)
            self._unfinished.clear()

    def _load(self, number: int, is_known: bool) -> None:
        start = self._ledger.entries_nbytes(number) if is_known else 0
        try:
            loaded = load(self._folder.segment(number), start)
        except FileNotFoundError:
            return
        with self._lock:
            change = self._ledger.extend if is_known else self._ledger.restore
            change(number, loaded.entries, loaded.nbytes)
        if loaded.is_finished:
            self._unfinished.discard(number)
        else:
            self._unfinished.add(number)

    def _go_on(self) -> None:
        """Append to the last segment if it is small, or those who start often would have very many."""
        number = self._ledger.next_number - 1
        if number in self._ledger.numbers and self._ledger.is_small(number):
            self._writer = self._open_writer(number)
            self._ledger.reopen(number)

    def _open_writer(self, number: int) -> SegmentWriter:
        return SegmentWriter(self._folder.segment(number), self._ledger.entries_nbytes(number))

    def _append(self, entry: Entry, data: Bytes) -> None:
        if self._writer is None or self._ledger.needs_segment(entry.nbytes):
            self.finish()
            self._begin()
        assert self._writer is not None
        self._writer.append(data)
        with self._lock:
            place = self._ledger.append(entry)
        self._unsynced.add(place.segment)

    def _begin(self) -> None:
        self._writer = SegmentWriter(self._folder.segment(self._ledger.next_number))
        with self._lock:
            self._ledger.begin()

    def _write_footer(self, number: int, writer: SegmentWriter) -> None:
        """Where it cannot be written the entries will be found by their headers."""
        with suppress(OSError):
            writer.finish(list(self._ledger.entries(number)))
        writer.close()
        self._unfinished.discard(number)
        self._unsynced.add(number)

    def _retire(self) -> int:
        """Give up the oldest segment that can be removed; how many records went."""
        failure = OSError("there is no segment to remove")
        for number in self._ledger.numbers:
            try:
                return self._give_up(number, self._ledger.survivors(number))
            except OSError as error:
                failure = error
        raise failure

    def _give_up(self, number: int, survivors: Sequence[tuple[bytes, Place]]) -> int:
        """Remove a segment, and then write again what is to stay: its bytes are free before others are taken."""
        with opened(self._folder.segment(number)) as descriptor:
            num_removed = self.remove(number)
            records = read(descriptor, [place for _, place in survivors]) if survivors else []
        num_kept = sum(self._write_again(key, record) for (key, _), record in zip(survivors, records, strict=True))
        return num_removed - num_kept

    def _write_again(self, key: bytes, record: memoryview | None) -> bool:
        if record is None or not is_record_of(key, record) or not self._ledger.has_room(record.nbytes):
            return False
        self._append(Entry(key, record.nbytes), record)
        return True

    def _close_if_open(self, number: int) -> None:
        if number == self._ledger.open_number:
            self.close()
            with self._lock:
                self._ledger.finish()

    def _forget_segment(self, number: int) -> int:
        self._unfinished.discard(number)
        self._unsynced.discard(number)
        with self._lock:
            return self._ledger.remove(number)


def is_record_of(key: bytes, record: Bytes) -> bool:
    """Whether it is a whole and undamaged record under this key."""
    try:
        return check_record(record).key == key
    except PageRecordError:
        return False
