"""Whether two texts have the same JSON where they part, written in another way: whitespace, order of keys, escapes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from typing import Any, NamedTuple

from pagoda.analysis.difference import Edit

MOST_STARTS = 256
MOST_READ_CHARACTERS = 4 << 20  # in all, however deep values are nested
OPENING = re.compile(r"[{\[]")
STRING_OR_SPACE = re.compile(r'"(?:\\.|[^"\\])*"|\s+', re.DOTALL)
DECODER = json.JSONDecoder()


class _Number(NamedTuple):
    """As exact as it is written, and equal to no `true`."""

    value: Decimal

    @classmethod
    def of(cls, text: str) -> _Number:
        return cls(Decimal(text))


EXACT_DECODER = json.JSONDecoder(parse_int=_Number.of, parse_float=_Number.of)


class _Written(NamedTuple):
    """A value, and how a text has it."""

    value: Any
    text: str


def has_other_whitespace(edit: Edit) -> bool:
    return any(_without_space(earlier.text) == _without_space(later.text) for earlier, later in _largest_equal(edit))


def has_other_key_order(edit: Edit) -> bool:
    """And nothing else but whitespace."""
    return any(
        json.dumps(earlier.value) != json.dumps(later.value)
        and json.dumps(earlier.value, sort_keys=True) == json.dumps(later.value, sort_keys=True)
        for earlier, later in _largest_equal(edit)
    )


def has_other_json_form(edit: Edit) -> bool:
    """As characters or as escapes, or numbers in another way."""
    return any(True for _ in _largest_equal(edit))


def has_other_entry_order(edit: Edit) -> bool:
    """Lists of the same entries."""
    try:
        return any(
            earlier.value != later.value and _unordered(earlier.value) == _unordered(later.value)
            for earlier, later in _values(edit)
        )
    except RecursionError:
        return False


def json_objects(text: str) -> list[dict[str, Any]]:
    """The objects that stand in a text, those in others left out."""
    found, start = [], 0
    while (opening := text.find("{", start)) >= 0:
        start = opening + 1
        value = _value_at(text, opening)
        if value is not None and isinstance(value[0], dict):
            found.append(value[0])
            start = value[1]
    return found


def _largest_equal(edit: Edit) -> Iterator[tuple[_Written, _Written]]:
    """The largest value around the place where the texts part that is the same in both, if there is one."""
    return islice(((earlier, later) for earlier, later in _values(edit) if _are_equal(earlier, later)), 1)


def _are_equal(earlier: _Written, later: _Written) -> bool:
    return bool(earlier.value == later.value) and _exact(earlier.text) == _exact(later.text)


def _values(edit: Edit) -> Iterator[tuple[_Written, _Written]]:
    """The values around that place, as both texts have them. One that ends before it is written alike in both."""
    starts = [match.start() for match in OPENING.finditer(edit.earlier, 0, edit.place)]
    if edit.place < len(edit.earlier) and edit.earlier[edit.place] in "{[":
        starts.append(edit.place)
    left = MOST_READ_CHARACTERS
    for start in starts[-MOST_STARTS:]:
        left -= len(edit.earlier) + len(edit.later) - 2 * start
        if left < 0:
            break
        earlier, later = _value_at(edit.earlier, start), _value_at(edit.later, start)
        if earlier is not None and later is not None and min(earlier[1], later[1]) > edit.place:
            yield (
                _Written(earlier[0], edit.earlier[start : earlier[1]]),
                _Written(later[0], edit.later[start : later[1]]),
            )


def _value_at(text: str, start: int) -> tuple[Any, int] | None:
    try:
        return DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None


def _exact(text: str) -> object:
    """With numbers as they are written, which floats may round; the text where they are beyond bounds."""
    try:
        return EXACT_DECODER.decode(text)
    except ArithmeticError:
        return text


def _without_space(text: str) -> str:
    return STRING_OR_SPACE.sub(lambda match: match[0] if match[0].startswith('"') else "", text)


def _unordered(value: Any) -> int:
    """A hash that is the same for lists of the same entries, at any depth."""
    match value:
        case dict():
            return hash(frozenset((key, _unordered(entry)) for key, entry in value.items()))
        case list():
            return hash(tuple(sorted(_unordered(entry) for entry in value)))
        case _:
            return hash((type(value), value))
