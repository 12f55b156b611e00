"""Reads JSON as models write it, while it comes, and passes it on as JSON that every client reads.

Control characters in strings and backslashes that escape nothing are escaped, halves of surrogate pairs replaced;
Python's words, and commas at the end of a list or an object, are read as what they mean, and blanks stand where Python
puts them. All else has to be JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from enum import Enum, auto
from math import isfinite
from typing import Any

from pagoda.server.replies.tape import Reading, Tape, more, skip

MOST_DEPTH = 100
# Of numbers that others can read too.
LITERAL = re.compile(r"-?(?:0|[1-9][0-9]{0,307})(?:\.[0-9]{1,400})?(?:[eE][+-]?[0-9]{1,3})?|true|false|null")
WORD = re.compile(r"[-+.0-9A-Za-z]*")
SPACE = re.compile(r"[ \t\r\n]*")
PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
OPEN_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
HEX = re.compile(r"[0-9a-fA-F]{4}")
HALF = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
OPEN_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?")
PAIR_CHARACTERS = 12
AS_JSON = {"True": "true", "False": "false", "None": "null"}
SPACED = {":": ": "}
CLOSING = {"{": "}", "[": "]"}

Say = Callable[[str], None]


class Found(Enum):
    """What came of reading: all of it, or its beginning and then no more, or something else."""

    WHOLE = auto()
    CUT = auto()
    WRONG = auto()


class Wants(Enum):
    """What may come next in JSON."""

    VALUE = auto()
    VALUE_OR_END = auto()
    KEY_OR_END = auto()
    NEXT_VALUE = auto()  # after a comma
    NEXT_KEY = auto()
    COLON = auto()
    COMMA_OR_END = auto()


def read_value(tape: Tape, say: Say) -> Reading[Found]:
    """Say one value, as it comes."""
    closing: list[str] = []
    wants = Wants.VALUE
    while True:
        yield from skip(tape, SPACE)
        if not tape.next:
            return Found.CUT
        found, wants = yield from _read_token(tape, say, wants, closing)
        if found is not Found.WHOLE or (wants is Wants.COMMA_OR_END and not closing):
            return found


def read_json(tape: Tape) -> Reading[tuple[Found, Any]]:
    """One value, decoded; None unless it is whole."""
    pieces: list[str] = []
    found = yield from read_value(tape, pieces.append)
    if found is not Found.WHOLE:
        return found, None
    try:
        return found, parsed("".join(pieces))
    except ValueError:
        return Found.WRONG, None


def parsed(text: str) -> Any:
    """JSON with line breaks in strings allowed. Raises ValueError for what is none, and for what no JSON can say."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _finite(number: str) -> float:
    value = float(number)
    if not isfinite(value):
        _refuse(number)
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _read_token(tape: Tape, say: Say, wants: Wants, closing: list[str]) -> Reading[tuple[Found, Wants]]:
    """Say one token; `closing` are the brackets that have to be closed, the last first."""
    character = tape.next
    takes_value = wants in (Wants.VALUE, Wants.VALUE_OR_END, Wants.NEXT_VALUE)
    takes_end = wants not in (Wants.VALUE, Wants.COLON)
    found, then = Found.WHOLE, Wants.COMMA_OR_END
    if wants in (Wants.NEXT_VALUE, Wants.NEXT_KEY) and character != closing[-1]:
        say(", ")
    if character == '"' and (takes_value or wants in (Wants.NEXT_KEY, Wants.KEY_OR_END)):
        found = yield from _read_string(tape, say)
        return found, Wants.COMMA_OR_END if takes_value else Wants.COLON
    if takes_value and character in CLOSING and len(closing) < MOST_DEPTH:
        closing.append(CLOSING[character])
        then = Wants.KEY_OR_END if character == "{" else Wants.VALUE_OR_END
    elif takes_end and character == closing[-1]:
        closing.pop()
    elif wants is Wants.COMMA_OR_END and character == ",":
        tape.place += 1
        return found, Wants.NEXT_KEY if closing[-1] == "}" else Wants.NEXT_VALUE
    elif wants is Wants.COLON and character == ":":
        then = Wants.VALUE
    elif takes_value:
        return (yield from _read_literal(tape, say)), then
    else:
        return Found.WRONG, then
    say(SPACED.get(character, character))
    tape.place += 1
    return found, then


def _read_literal(tape: Tape, say: Say) -> Reading[Found]:
    start = tape.place
    yield from skip(tape, WORD)
    word = tape.text[start : tape.place]
    if word not in AS_JSON and LITERAL.fullmatch(word) is None:
        return Found.CUT if tape.has_ended else Found.WRONG
    say(AS_JSON.get(word, word))
    return Found.WHOLE


def _read_string(tape: Tape, say: Say) -> Reading[Found]:
    say('"')
    tape.place += 1
    while True:
        yield from _say_plain(tape, say)
        character = tape.next
        if not character:
            return Found.CUT
        if character == '"':
            say('"')
            tape.place += 1
            return Found.WHOLE
        if character != "\\":
            say(json.dumps(character)[1:-1])
            tape.place += 1
        elif not (yield from _read_escape(tape, say)):
            return Found.CUT


def _say_plain(tape: Tape, say: Say) -> Reading[None]:
    while True:
        found = PLAIN.match(tape.text, tape.place)
        assert found is not None
        if found[0]:
            say(found[0])
        tape.place = found.end()
        if tape.next or not (yield from more(tape)):
            return


def _read_escape(tape: Tape, say: Say) -> Reading[bool]:
    """Say an escape; False if the text ends in it."""
    while OPEN_ESCAPE.fullmatch(tape.text, tape.place):
        if not (yield from more(tape)):
            tape.place = len(tape.text)
            return False
    if HALF.match(tape.text, tape.place):
        while len(tape.text) < tape.place + PAIR_CHARACTERS and (yield from more(tape)):
            pass
        if OPEN_PAIR.fullmatch(tape.text, tape.place):
            tape.place = len(tape.text)
            return False
        pair = PAIR.match(tape.text, tape.place)
        say("\\ufffd" if pair is None else pair[0])
        tape.place += PAIR_CHARACTERS // 2 if pair is None else PAIR_CHARACTERS
        return True
    escaped = tape.text[tape.place + 1]
    is_unicode = escaped == "u" and HEX.match(tape.text, tape.place + 2) is not None
    length = 6 if is_unicode else 2 if escaped in '"\\/bfnrt' else 1
    say("\\\\" if length == 1 else tape.text[tape.place : tape.place + length])
    tape.place += length
    return True
