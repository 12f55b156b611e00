"""Bytes, seconds and rates as people read and write them.

Knows numbers and text only. Every command, log line and report that shows a size asks here, so they agree.
"""

from __future__ import annotations

import re
from math import inf, isinf

from pagoda.errors import ConfigError

NOT_MEASURED = "-"
DECIMAL_PREFIXES = ("", "k", "M", "G", "T", "P")
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_nbytes(nbytes: float) -> str:
    """327680 -> '320 KiB'; three digits are enough to compare."""
    exponent = 0
    while abs(nbytes) >= 1023.5 and exponent < len(BYTE_UNITS) - 1:
        nbytes /= 1024
        exponent += 1
    return f"{_three_digits(nbytes)} {BYTE_UNITS[exponent]}"


def parse_nbytes(text: str) -> int:
    """'512MiB', '4G' and '1073741824' as bytes. All units are powers of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    nbytes = inf if match is None else float(match[1]) * 1024.0 ** " kmgt".index(match[2] or " ")
    if isinf(nbytes):
        raise ConfigError(f"{text!r} is not a size; write bytes, or a number with a unit such as 512MiB or 4G.")
    return int(nbytes)


def parse_bandwidth(text: str) -> float:
    """'3.35TB/s' and '900 GB/s' as bytes a second. Units are powers of 1000, those with an i of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b(?:/s|ps)", text.strip().lower())
    if match is None or not float(match[1]):
        raise ConfigError(f"{text!r} is not a bandwidth; write bytes a second with a unit, as 3.35TB/s or 900GB/s.")
    return float(match[1]) * float(1024 if match[3] else 1000) ** " kmgt".index(match[2] or " ")


def parse_flops(text: str) -> float:
    """'990TFLOPS' and '67 GFLOP/s' as operations a second. Units are powers of 1000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)flop(?:s|/s)", text.strip().lower())
    if match is None or not float(match[1]):
        raise ConfigError(f"{text!r} is not a rate of arithmetic; write operations a second, as 990TFLOPS or 67GFLOPS.")
    return float(match[1]) * 1000.0 ** " kmgtp".index(match[2] or " ")


def format_decimal(value: float, unit: str) -> str:
    """3.35e12, 'B/s' -> '3.35 TB/s': in powers of 1000, as rates are given."""
    exponent = 0
    while abs(value) >= 999.5 and exponent < len(DECIMAL_PREFIXES) - 1:
        value /= 1000
        exponent += 1
    return f"{_three_digits(value)} {DECIMAL_PREFIXES[exponent]}{unit}"


def format_seconds(seconds: float | None) -> str:
    """0.0123 -> '12.3 ms'; a dash for what was not measured."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 999.5e-6:
        return f"{_three_digits(seconds * 1e6)} µs"
    if seconds < 999.5e-3:
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
