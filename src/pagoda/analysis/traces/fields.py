"""Finds in a row what traces call by different names: lengths, times, tenants.

A row is a dictionary; its names are compared in small letters without anything between them. What is there and makes
no sense is a `LineError`, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from math import isfinite
from typing import Any

from pagoda.checks import is_number, is_whole, shown

PROMPT_LENGTHS = (
    *("inputlength", "inputtokens", "contexttokens", "prompttokens", "requesttokens"),
    *("numprefilltokens", "promptlength", "promptlen", "inputlen", "numprompttokens"),
)
OUTPUT_LENGTHS = (
    *("outputlength", "outputtokens", "generatedtokens", "completiontokens", "responsetokens"),
    *("numdecodetokens", "outputlen", "maxtokens", "maxcompletiontokens"),
)
CACHED_TOKENS = ("cachedtokens",)
SECONDS = ("arrivedat", "arrivaltime", "time", "arrivalseconds")
MILLISECONDS = ("arrivalms", "timestampms")
TIMESTAMPS = ("timestamp",)  # in the unit of the kind of file
TENANTS = ("tenant", "tenantid")
MOST_TOKENS = 1 << 24  # of a prompt or an answer: more than any model reads or writes

Row = Mapping[str, Any]


class LineError(Exception):
    """Why a line is no request."""


def length(row: Row, names: tuple[str, ...]) -> int | None:
    """A number of tokens, None if the row has none of the names."""
    name, value = _found(row, names)
    if value is None:
        return None
    number = _number(name, value)
    if number != int(number) or number < 0:
        raise LineError(f"{name} is {shown(value)}; it must be a whole number of tokens")
    if number > MOST_TOKENS:
        raise LineError(f"{name} is {shown(value)}; no model has more than {MOST_TOKENS} tokens")
    return int(number)


def seconds(row: Row, timestamps_per_second: float) -> float | None:
    """When the request came, None if the row does not say."""
    for names, per_second in ((MILLISECONDS, 1e3), (SECONDS, 1.0), (TIMESTAMPS, timestamps_per_second)):
        name, value = _found(row, names)
        if value is not None:
            return _date(name, value) if _is_word(value) else _number(name, value) / per_second
    return None


def tenant(row: Row) -> str:
    _, value = _found(row, TENANTS)
    if value is None:
        return ""
    if not (isinstance(value, str) or is_whole(value)):
        raise LineError(f"the tenant is {shown(value)}; it must be text or a number")
    return str(value)


@cache
def plain(name: str) -> str:
    """A name as it is compared: ContextTokens, context_tokens and "Context Tokens" are one."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _found(row: Row, names: tuple[str, ...]) -> tuple[str, Any]:
    for name, value in row.items():
        if value not in (None, "") and plain(name) in names:
            return name, value
    return "", None


def _is_word(value: Any) -> bool:
    """Whether it is text that is no number, and so may be a date."""
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


def _date(name: str, value: str) -> float:
    try:
        time = datetime.fromisoformat(value.strip())
    except ValueError:
        raise LineError(f"{name} is {shown(value)}; give a number, or a time as 2023-11-16 18:17:03") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _number(name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, str) or is_number(value) else float("nan")
    except (ValueError, OverflowError):
        number = float("nan")
    if not isfinite(number):
        raise LineError(f"{name} is {shown(value)}; it must be a number")
    return number
