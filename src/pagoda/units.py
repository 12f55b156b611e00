"""Bytes, seconds and rates as people read and write them.

Knows numbers and text only. Every command, log line and report that shows a size asks here, so they agree.
"""

from __future__ import annotations

import re

from pagoda.errors import ConfigError

NOT_MEASURED = "-"
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_nbytes(nbytes: float) -> str:
    """327680 -> '320 KiB'; three digits are enough to compare."""
    exponent = 0
    while abs(nbytes) >= 1024 and exponent < len(BYTE_UNITS) - 1:
        nbytes /= 1024
        exponent += 1
    return f"{_three_digits(nbytes)} {BYTE_UNITS[exponent]}"


def parse_nbytes(text: str) -> int:
    """'512MiB', '4G' and '1073741824' as bytes. All units are powers of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise ConfigError(f"{text!r} is not a size; write bytes, or a number with a unit such as 512MiB or 4G.")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))


def format_seconds(seconds: float | None) -> str:
    """0.0123 -> '12.3 ms'; a dash for what was not measured."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 1e-3:
        return f"{_three_digits(seconds * 1e6)} µs"
    if seconds < 1:
        return f"{_three_digits(seconds * 1e3)} ms"
    return f"{_three_digits(seconds)} s"


def format_rate(per_second: float | None, unit: str) -> str:
    """1234.5, 'tokens' -> '1,234 tokens/s'; a dash for what was not measured."""
    return NOT_MEASURED if per_second is None else f"{_three_digits(per_second)} {unit}/s"


def _three_digits(value: float) -> str:
    """At least three digits, trailing zeros dropped: 1.23, 12.3, 123, 1,234."""
    decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
