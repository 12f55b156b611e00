"""Holds text that comes piece by piece, with what formats need to read it.

A format is a generator that yields where it has to see more; so how the text is cut changes nothing of what is read.
Knows no format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

Result = TypeVar("Result")
Reading = Generator[None, None, Result]

SPACE = re.compile(r"\s*")
# Of a text that was cut off, so much of what may have been a mark is taken for one.
LEAST_CUT_MARK = 2


class Tape:
    """`text` is read up to `place`. One that `is_cut` is not all that the model had to say."""

    def __init__(self) -> None:
        self.text = ""
        self.place = 0
        self.is_last = False
        self.is_cut = False

    @property
    def next(self) -> str:
        """The next character, "" if it has not come."""
        return self.text[self.place : self.place + 1]

    @property
    def has_ended(self) -> bool:
        return self.is_last and self.place >= len(self.text)

    @property
    def was_cut(self) -> bool:
        """Whether the text broke off here."""
        return self.has_ended and self.is_cut

    def forget(self) -> None:
        """Nobody goes back to what has been read."""
        self.text, self.place = self.text[self.place :], 0


def more(tape: Tape) -> Reading[bool]:
    """Wait for more text; False if there is none."""
    if tape.is_last:
        return False
    yield
    return True


def skip(tape: Tape, pattern: re.Pattern[str] = SPACE) -> Reading[None]:
    """Take off the characters of `pattern`, which matches any number of them."""
    while True:
        found = pattern.match(tape.text, tape.place)
        assert found is not None, "the pattern matches nothing as well"
        tape.place = found.end()
        if tape.next or not (yield from more(tape)):
            return


def starts(tape: Tape, *marks: str) -> Reading[str]:
    """Take off the longest of `marks` that comes next, and return it; "" if none does.

    The beginning of one at which the text was cut off is taken off too.
    """
    longest = max(map(len, marks))
    while True:
        rest = tape.text[tape.place : tape.place + longest]
        may_become = any(len(mark) > len(rest) and mark.startswith(rest) for mark in marks)
        if not may_become or not (yield from more(tape)):
            break
    found = max((mark for mark in marks if rest.startswith(mark)), key=len, default="")
    tape.place += len(rest) if may_become and tape.is_cut else len(found)
    return found


def until(tape: Tape, marks: Sequence[str], say: Callable[[str], None]) -> Reading[str]:
    """Say what comes before the first of `marks`, as it comes; the mark is taken off and returned, "" at the end."""
    pattern = re.compile("|".join(map(re.escape, marks)) or r"(?!)")
    while True:
        found = pattern.search(tape.text, tape.place)
        if found is not None:
            say(tape.text[tape.place : found.start()])
            tape.place = found.end()
            return found[0]
        end = len(tape.text) - max((_overlap(tape.text[tape.place :], mark) for mark in marks), default=0)
        say(tape.text[tape.place : end])
        tape.place = end
        if not (yield from more(tape)):
            rest, tape.place = tape.text[end:], len(tape.text)
            if not tape.is_cut or len(rest) < LEAST_CUT_MARK:
                say(rest)
            return ""


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(mark[:size])), 0)
