"""A segment of the log as a file: entries back to back, and behind a finished one a footer, the table of its entries.

Nothing is synced on the way and nothing is believed: a footer that does not prove to be right is passed over, and the
entries are found by their headers, up to the first that is none. That is where a torn tail begins.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from xxhash import xxh3_64_digest, xxh3_128_digest

from pagoda.cache.tiers.disk.ledger import Entry, Place
from pagoda.cache.tiers.record import HEADER_NBYTES, NAME_NBYTES, Bytes, read_header
from pagoda.errors import PageRecordError

KEY_NBYTES = 1 + NAME_NBYTES
# A note that a record was dropped: magic, key; then a check of both.
_NOTE_MAGIC = b"PGDX"
_NOTE = struct.Struct(f"<4s{KEY_NBYTES}s3x")
NOTE_NBYTES = _NOTE.size + 8
# The table of a footer: key, whether it is a note, bytes. Then magic, version, entries, bytes of all; then a check.
_ROW = struct.Struct(f"<{KEY_NBYTES}s?6xQ")
_FOOTER_MAGIC = b"PGDF"
_FOOTER_VERSION = 1
_FOOTER = struct.Struct("<4sHxxQQ")
_FOOTER_CHECK_NBYTES = 16
FOOTER_NBYTES = _FOOTER.size + _FOOTER_CHECK_NBYTES
ROW_NBYTES = _ROW.size
# Headers of small pages are read many at once, and not much is read for nothing where pages are large.
_SCAN_NBYTES = 1 << 16


class Loaded(NamedTuple):
    """What a segment holds from where it was read on; `end` is where its last whole entry ends."""

    entries: list[Entry]
    end: int
    nbytes: int
    is_finished: bool


def load(path: Path, start: int = 0) -> Loaded:
    """The entries from `start` on. Raises OSError; whatever is in the file, nothing else."""
    with path.open("rb", buffering=_SCAN_NBYTES) as file:
        nbytes = os.fstat(file.fileno()).st_size
        entries = _read_footer(file, nbytes) if start == 0 else None
        if entries is not None:
            return Loaded(entries, sum(entry.nbytes for entry in entries), nbytes, is_finished=True)
        entries = list(_scan(file, start, nbytes))
    return Loaded(entries, start + sum(entry.nbytes for entry in entries), nbytes, is_finished=False)


@contextmanager
def opened(path: Path) -> Iterator[int | None]:
    """The descriptor of a segment's file; None if there is no such file any more. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read(descriptor: int | None, places: Sequence[Place]) -> list[memoryview | None]:
    """What lies at these places of a segment, which need not be what was put there; None where the file ends before.

    Raises OSError.
    """
    if descriptor is None:
        return [None] * len(places)
    if any(left.start + left.nbytes != right.start for left, right in pairwise(places)):
        _announce(descriptor, places)
    return [_read(descriptor, place) for place in places]


def note(key: bytes) -> bytes:
    """What is appended when a record is dropped."""
    fields = _NOTE.pack(_NOTE_MAGIC, key)
    return fields + xxh3_64_digest(fields)


class SegmentWriter:
    """Appends to one file, from `end` on; what lies behind is cut off. All but `close` raise OSError."""

    def __init__(self, path: Path, end: int = 0) -> None:
        self._end = end
        self._is_torn = True
        flags = os.O_RDWR | os.O_CLOEXEC | (0 if end else os.O_CREAT | os.O_TRUNC)
        self._descriptor = os.open(path, flags, 0o600)

    def append(self, data: Bytes) -> None:
        """All of it or, with OSError, nothing."""
        self._mend()
        self._is_torn = True
        try:
            self._write(data)
        except OSError:
            with suppress(OSError):
                self._mend()
            raise
        self._is_torn = False
        self._end += len(data)

    def finish(self, entries: Sequence[Entry]) -> None:
        """Append the footer."""
        table = b"".join([_ROW.pack(entry.key, entry.is_drop, entry.nbytes) for entry in entries])
        fields = table + _FOOTER.pack(_FOOTER_MAGIC, _FOOTER_VERSION, len(entries), self._end)
        self.append(fields + xxh3_128_digest(fields))

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)

    def _mend(self) -> None:
        """Cut off what a write left that failed."""
        if self._is_torn:
            os.ftruncate(self._descriptor, self._end)
            self._is_torn = False

    def _write(self, data: Bytes) -> None:
        left, end = memoryview(data), self._end
        while left:
            num_written = os.pwrite(self._descriptor, left, end)
            left, end = left[num_written:], end + num_written


def _announce(descriptor: int, places: Sequence[Place]) -> None:
    """The kernel reads ahead of those who read on, but of what lies apart it must be told."""
    for place in places:
        os.posix_fadvise(descriptor, place.start, place.nbytes, os.POSIX_FADV_WILLNEED)


def _read(descriptor: int, place: Place) -> memoryview | None:
    buffer = np.empty(place.nbytes, np.uint8).data
    filled = 0
    while filled < place.nbytes:
        num_read = os.preadv(descriptor, [buffer[filled:]], place.start + filled)
        if num_read == 0:
            return None
        filled += num_read
    return buffer


def _read_footer(file: BinaryIO, nbytes: int) -> list[Entry] | None:
    """None if there is none, or it is wrong in anything."""
    if nbytes < FOOTER_NBYTES:
        return None
    file.seek(nbytes - FOOTER_NBYTES)
    tail = file.read(FOOTER_NBYTES)
    if len(tail) < FOOTER_NBYTES:
        return None
    magic, version, num_entries, entries_nbytes = _FOOTER.unpack_from(tail)
    table_nbytes = num_entries * ROW_NBYTES
    if (magic, version) != (_FOOTER_MAGIC, _FOOTER_VERSION) or entries_nbytes + table_nbytes + FOOTER_NBYTES != nbytes:
        return None
    file.seek(entries_nbytes)
    table = file.read(table_nbytes)
    if xxh3_128_digest(table + tail[: _FOOTER.size]) != tail[_FOOTER.size :]:
        return None
    entries = [Entry(key, size, is_drop) for key, is_drop, size in _ROW.iter_unpack(table)]
    return entries if sum(entry.nbytes for entry in entries) == entries_nbytes else None


def _scan(file: BinaryIO, start: int, nbytes: int) -> Iterator[Entry]:
    """The entries from `start` on that are whole."""
    while True:
        file.seek(start)
        entry = _entry(file.read(HEADER_NBYTES))
        if entry is None or start + entry.nbytes > nbytes:
            return
        yield entry
        start += entry.nbytes


def _entry(data: bytes) -> Entry | None:
    """What entry begins like this; None if none does."""
    if data.startswith(_NOTE_MAGIC):
        fields, check = data[: _NOTE.size], data[_NOTE.size : NOTE_NBYTES]
        return Entry(_NOTE.unpack(fields)[1], NOTE_NBYTES, is_drop=True) if check == xxh3_64_digest(fields) else None
    try:
        header = read_header(data)
    except PageRecordError:
        return None
    return Entry(header.key, header.record_nbytes)
