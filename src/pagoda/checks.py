"""What values are, for those who check what callers give: True is a number for Python, and nobody means it as one."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

MAX_SHOWN_LENGTH = 60


def is_whole(value: Any) -> bool:
    """Numpy's whole numbers are some as well."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def as_float(value: Any) -> float:
    """A number as a float, infinite if it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def shown(value: Any) -> str:
    """`value` for a message, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # a number of too many digits, or somebody's class
        text = f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[:MAX_SHOWN_LENGTH]}..."
