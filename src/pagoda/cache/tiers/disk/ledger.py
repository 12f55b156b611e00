"""Which record lies in which segment of a log, which segment goes next, and what of it is written again.

Knows keys and sizes, neither files nor bytes: the simulator runs the same bookkeeping. Not locked.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

MOST_SEGMENT_NBYTES = 64 << 20
SEGMENTS_OF_LIMIT = 16
# Of the oldest segment at most so much is written again, so that something is gained.
REWRITTEN_SHARE = 3 / 4
_INDEX_BITS = 32


class Place(NamedTuple):
    """Where a record lies."""

    segment: int
    start: int
    nbytes: int


class Entry(NamedTuple):
    """What follows next in a segment: a record, or the note that the one before under this key was dropped."""

    key: bytes
    nbytes: int
    is_drop: bool = False


@dataclass(frozen=True)
class SegmentSizes:
    """Segments take `limit_nbytes` together (None: no limit), and each `segment_nbytes`, or one record that is larger.

    Beside its records a segment takes `fixed_nbytes`, and `entry_nbytes` for each.
    """

    limit_nbytes: int | None
    segment_nbytes: int
    entry_nbytes: int = 0
    fixed_nbytes: int = 0

    @classmethod
    def for_limit(cls, limit_nbytes: int | None, entry_nbytes: int = 0, fixed_nbytes: int = 0) -> SegmentSizes:
        """With segments that are neither so large that much goes at once, nor so small that there are very many."""
        segment_nbytes = MOST_SEGMENT_NBYTES
        if limit_nbytes is not None:
            segment_nbytes = min(segment_nbytes, limit_nbytes // SEGMENTS_OF_LIMIT)
        return cls(limit_nbytes, segment_nbytes, entry_nbytes, fixed_nbytes)

    def of(self, num_entries: int, entries_nbytes: int) -> int:
        """What a segment of these takes."""
        return entries_nbytes + num_entries * self.entry_nbytes + self.fixed_nbytes


@dataclass(slots=True)
class _Segment:
    """Its entries in order. `nbytes` is what it takes once it is finished."""

    nbytes: int
    keys: list[bytes] = field(default_factory=list)
    ends: array[int] = field(default_factory=lambda: array("Q"))
    is_hit: bytearray = field(default_factory=bytearray)
    is_drop: bytearray = field(default_factory=bytearray)

    def add(self, entry: Entry) -> None:
        self.ends.append(self.entries_nbytes + entry.nbytes)
        self.keys.append(entry.key)
        self.is_hit.append(False)
        self.is_drop.append(entry.is_drop)

    @property
    def entries_nbytes(self) -> int:
        return self.ends[-1] if self.ends else 0

    def place(self, number: int, index: int) -> Place:
        start = self.ends[index - 1] if index else 0
        return Place(number, start, self.ends[index] - start)


class SegmentLedger:
    """Entries are appended to the open segment. The oldest segment goes first.

    A record that is dropped is noted in the log. Its note is younger than the record, so it goes later.
    """

    def __init__(self, sizes: SegmentSizes) -> None:
        self.sizes = sizes
        self.nbytes = 0
        self._segments: OrderedDict[int, _Segment] = OrderedDict()
        self._open: int | None = None
        # Millions of entries: an int of segment and index takes a quarter of a tuple with three.
        self._slots: dict[bytes, int] = {}
        self._next = 1

    def __len__(self) -> int:
        """How many records are held."""
        return len(self._slots)

    def __contains__(self, key: bytes) -> bool:
        """May be asked by any thread at any time."""
        return key in self._slots

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of all segments, the oldest first."""
        return tuple(self._segments)

    @property
    def open_number(self) -> int | None:
        return self._open

    @property
    def next_number(self) -> int:
        """What the next segment is called; no number comes twice."""
        return self._next

    @property
    def is_over(self) -> bool:
        """Whether more is held than may be, as when the limit was larger before."""
        return self.sizes.limit_nbytes is not None and self.nbytes > self.sizes.limit_nbytes

    def find(self, key: bytes) -> Place | None:
        slot = self._slots.get(key)
        return None if slot is None else self._place(slot)

    def use(self, key: bytes) -> bool:
        """Note that a record was hit; whether there is one."""
        slot = self._slots.get(key)
        if slot is None:
            return False
        self._segments[slot >> _INDEX_BITS].is_hit[_index(slot)] = True
        return True

    def takes(self, nbytes: int) -> bool:
        """Whether a record of this size may be held at all."""
        limit = self.sizes.limit_nbytes
        return limit is None or self.sizes.of(1, nbytes) <= limit // 2

    def has_room(self, nbytes: int) -> bool:
        """Whether an entry of this size can be appended before a segment goes."""
        limit = self.sizes.limit_nbytes
        more = nbytes + self.sizes.entry_nbytes + self.sizes.fixed_nbytes * self.needs_segment(nbytes)
        return limit is None or self.nbytes + more <= limit

    def needs_segment(self, nbytes: int) -> bool:
        """Whether a segment must begin for an entry of this size: there is none that is open, or it is full."""
        if self._open is None:
            return True
        segment = self._segments[self._open]
        is_full = segment.nbytes + nbytes + self.sizes.entry_nbytes > self.sizes.segment_nbytes
        return is_full and bool(segment.keys)

    def begin(self) -> int:
        """Open a segment."""
        self.finish()
        number = self._next
        self.restore(number, (), self.sizes.fixed_nbytes)
        self._open = number
        return number

    def finish(self) -> None:
        """Append no more to the segment that is open."""
        self._open = None

    def reopen(self, number: int) -> None:
        """Go on with the last segment."""
        assert number == self._next - 1
        self._open = number

    def append(self, entry: Entry) -> Place:
        """To the open segment."""
        assert self._open is not None
        segment = self._segments[self._open]
        more = entry.nbytes + self.sizes.entry_nbytes
        segment.nbytes += more
        self.nbytes += more
        return self._add(self._open, segment, entry)

    def restore(self, number: int, entries: Iterable[Entry], nbytes: int) -> None:
        """A segment that is there already, younger than all that are known. It takes `nbytes`."""
        assert number >= self._next
        self._next = number + 1
        segment = self._segments[number] = _Segment(nbytes)
        self.nbytes += nbytes
        for entry in entries:
            self._add(number, segment, entry)

    def extend(self, number: int, entries: Iterable[Entry], nbytes: int) -> None:
        """A segment that somebody else appends to takes `nbytes` now, with these entries behind its others."""
        segment = self._segments[number]
        self.nbytes += nbytes - segment.nbytes
        segment.nbytes = nbytes
        for entry in entries:
            self._add(number, segment, entry)

    def entries(self, number: int) -> Iterator[Entry]:
        """All of a segment, in order."""
        segment = self._segments[number]
        for index, key in enumerate(segment.keys):
            yield Entry(key, segment.place(number, index).nbytes, bool(segment.is_drop[index]))

    def entries_nbytes(self, number: int) -> int:
        """Where the next entry of a segment begins."""
        return self._segments[number].entries_nbytes

    def reserve_footer(self, number: int) -> None:
        """A segment that somebody else left unfinished takes what it will when it is finished."""
        segment = self._segments[number]
        nbytes = max(segment.nbytes, self.sizes.of(len(segment.keys), segment.entries_nbytes))
        self.nbytes += nbytes - segment.nbytes
        segment.nbytes = nbytes

    def is_small(self, number: int) -> bool:
        """Whether more than half of a segment is free."""
        return self._segments[number].nbytes < self.sizes.segment_nbytes // 2

    def forget(self, key: bytes) -> None:
        """The record of this key is held no more."""
        self._slots.pop(key, None)

    def records(self, number: int) -> list[tuple[bytes, Place]]:
        """The records of a segment that are held, in order."""
        segment = self._segments[number]
        held = [index for index, key in enumerate(segment.keys) if self._slots.get(key) == _slot(number, index)]
        return [(segment.keys[index], segment.place(number, index)) for index in held]

    def survivors(self, number: int) -> list[tuple[bytes, Place]]:
        """What of a segment is to be written again when it goes: records that were hit since they were written."""
        segment = self._segments[number]
        left_nbytes = REWRITTEN_SHARE * segment.nbytes
        found = []
        for index in _positions(segment.is_hit):
            key, place = segment.keys[index], segment.place(number, index)
            size = place.nbytes + self.sizes.entry_nbytes
            if size <= left_nbytes and self._slots.get(key) == _slot(number, index):
                found.append((key, place))
                left_nbytes -= size
        return found

    def remove(self, number: int) -> int:
        """A segment has gone; how many records went with it."""
        segment = self._segments.pop(number)
        self.nbytes -= segment.nbytes
        if self._open == number:
            self._open = None
        lost = [key for index, key in enumerate(segment.keys) if self._slots.get(key) == _slot(number, index)]
        for key in lost:
            del self._slots[key]
        return len(lost)

    def _add(self, number: int, segment: _Segment, entry: Entry) -> Place:
        index = len(segment.keys)
        segment.add(entry)
        if entry.is_drop:
            self._slots.pop(entry.key, None)
        else:
            self._slots[entry.key] = _slot(number, index)
        return segment.place(number, index)

    def _place(self, slot: int) -> Place:
        number = slot >> _INDEX_BITS
        return self._segments[number].place(number, _index(slot))


def _slot(number: int, index: int) -> int:
    return number << _INDEX_BITS | index


def _index(slot: int) -> int:
    return slot & ((1 << _INDEX_BITS) - 1)


def _positions(marks: bytearray) -> Iterator[int]:
    """Where there is a mark."""
    position = marks.find(True)
    while position >= 0:
        yield position
        position = marks.find(True, position + 1)
