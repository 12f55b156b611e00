"""Whether two texts have the same JSON where they part, written in another way: whitespace, order of keys, escapes."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from pagoda.analysis.difference import Edit

MOST_STARTS = 256
MOST_READ_CHARACTERS = 4 << 20  # in all, however deep values are nested
OPENING = re.compile(r"[{\[]")
STRING_OR_SPACE = re.compile(r'"(?:\\.|[^"\\])*"|\s+', re.DOTALL)
DECODER = json.JSONDecoder()


class _Pair(NamedTuple):
    """A value as both texts have it."""

    earlier: str
    later: str


def has_other_whitespace(edit: Edit) -> bool:
    return any(_without_space(pair.earlier) == _without_space(pair.later) for pair in _equal_values(edit))


def has_other_key_order(edit: Edit) -> bool:
    return any(_dumped(pair.earlier) != _dumped(pair.later) for pair in _equal_values(edit))


def has_other_json_form(edit: Edit) -> bool:
    """As characters or as escapes, or numbers in another way."""
    return bool(_equal_values(edit))


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


def _equal_values(edit: Edit) -> list[_Pair]:
    """The largest value around the place where the texts part that is the same in both."""
    starts = [match.start() for match in OPENING.finditer(edit.earlier, 0, edit.place)]
    if edit.place < len(edit.earlier) and edit.earlier[edit.place] in "{[":
        starts.append(edit.place)
    left = MOST_READ_CHARACTERS
    for start in starts[-MOST_STARTS:]:
        earlier, later = _value_at(edit.earlier, start), _value_at(edit.later, start)
        left -= len(edit.earlier) + len(edit.later) - 2 * start
        if left < 0:
            break
        if earlier is None or later is None or min(earlier[1], later[1]) < edit.place:
            continue
        if earlier[0] == later[0]:
            return [_Pair(edit.earlier[start : earlier[1]], edit.later[start : later[1]])]
    return []


def _value_at(text: str, start: int) -> tuple[Any, int] | None:
    try:
        return DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None


def _without_space(text: str) -> str:
    return STRING_OR_SPACE.sub(lambda match: match[0] if match[0].startswith('"') else "", text)


def _dumped(text: str) -> str:
    return json.dumps(json.loads(text))
