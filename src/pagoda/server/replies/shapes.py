"""Describes how calls of a dialect are spelled, to hold a model to it: words of the dialect, and slots between them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Slot(Enum):
    """What stands between words."""

    GAP = auto()  # a blank or none
    NUMBER = auto()
    ID = auto()
    NAME = auto()  # of the function
    ARGUMENTS = auto()  # as a JSON object
    CALL = auto()  # name and arguments as a JSON object
    CALLS = auto()  # a list of such
    PAIRS = auto()  # each argument, as the shape's `pair`
    KEY = auto()
    VALUE = auto()  # bare text if it is a string, else JSON


Words = tuple[str | Slot, ...]


@dataclass(frozen=True)
class CallShape:
    """Between `start` and `end` stands one `call`, or several if calls come in sections. Without an `end` nothing but
    another call may follow. `pair` is one argument.
    """

    start: str
    call: Words
    end: str = ""
    has_sections: bool = False
    pair: Words = ()
