"""Walks over the bytes of a GGUF header, and never beyond them: numbers, strings and arrays of either.

Knows how GGUF writes values. A count is believed only as far as there are bytes for it, and what is long is passed over
and not kept: headers have a hundred thousand tokens, which other code reads when it needs them.
"""

from __future__ import annotations

from mmap import mmap
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

from pagoda.errors import CorruptCheckpointError

# What values are, by GGUF's numbers for them.
NUMBERS = {
    number: Struct("<" + code)
    for number, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
TEXT, ARRAY = 8, 9
COUNT, KIND = NUMBERS[10], NUMBERS[4]

# Templates of chats are the longest texts; the longest tokens are lines of spaces or dashes.
MAX_TEXT_NBYTES = 1 << 20
MAX_ENTRY_NBYTES = 1 << 12
# Vocabularies and their merges have up to a million entries.
MAX_ENTRIES = 1 << 22
# Arrays of one entry for each layer are kept, and whatever is as short.
MAX_KEPT_ENTRIES = 1 << 12


class Field(NamedTuple):
    """What stands under a key. `value` is None of an array that is too long to be kept."""

    kind: int
    value: Any
    item_kind: int | None = None
    num_items: int = 1


class Walk:
    """A place in a header of at most `end` bytes, which moves over what is read. Raises CorruptCheckpointError."""

    def __init__(self, data: mmap, end: int, file: Path) -> None:
        self._data = data
        self._end = end
        self.file = file
        self.place = 0

    def number(self, kind: Struct) -> Any:
        return kind.unpack_from(self._data, self._advance(kind.size))[0]

    def count(self, what: str, most: int, item_nbytes: int) -> int:
        """A number of things to come that have so many bytes each, at least."""
        count = int(self.number(COUNT))
        if count > most or count * item_nbytes > self._end - self.place:
            raise self.wrong(f"it has {count} {what}")
        return count

    def text(self, most_nbytes: int = MAX_TEXT_NBYTES) -> str:
        nbytes = self.count("bytes in a text", most_nbytes, 1)
        start = self._advance(nbytes)
        try:
            return self._data[start : start + nbytes].decode()
        except UnicodeDecodeError as error:
            raise self.wrong(f"it has text that is no text: {error}") from error

    def field(self) -> Field:
        """The value under a key, with its kind before it."""
        kind = self.number(KIND)
        if kind == ARRAY:
            return self._array()
        return Field(kind, self._value(kind, MAX_TEXT_NBYTES))

    def wrong(self, complaint: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"{self.file} is not a whole GGUF file: near byte {self.place} {complaint}.")

    def _value(self, kind: int, most_nbytes: int) -> Any:
        if kind == TEXT:
            return self.text(most_nbytes)
        if kind not in NUMBERS:
            raise self.wrong(f"it has a value of kind {kind}")
        return self.number(NUMBERS[kind])

    def _array(self) -> Field:
        kind = self.number(KIND)
        if kind != TEXT and kind not in NUMBERS:
            raise self.wrong(f"it has an array of kind {kind}")
        item_nbytes = COUNT.size if kind == TEXT else NUMBERS[kind].size
        count = self.count("entries in an array", MAX_ENTRIES, item_nbytes)
        if count <= MAX_KEPT_ENTRIES:
            return Field(ARRAY, [self._value(kind, MAX_TEXT_NBYTES) for _ in range(count)], kind, count)
        if kind == TEXT:
            self._pass_texts(count)
        else:
            self._advance(count * item_nbytes)
        return Field(ARRAY, None, kind, count)

    def _pass_texts(self, count: int) -> None:
        place, end, data, read = self.place, self._end, self._data, COUNT.unpack_from
        for _ in range(count):
            if place + COUNT.size > end:
                raise self.wrong("it ends")
            nbytes = read(data, place)[0]
            place += COUNT.size + nbytes
            if nbytes > MAX_ENTRY_NBYTES or place > end:
                raise self.wrong(f"it has a token of {nbytes} bytes")
        self.place = place

    def _advance(self, nbytes: int) -> int:
        """Go on; returns where it was."""
        start = self.place
        if nbytes > self._end - start:
            raise self.wrong("it ends")
        self.place += nbytes
        return start
