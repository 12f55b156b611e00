"""Bytes, seconds and rates as text."""

from __future__ import annotations

import pytest

from pagoda.errors import ConfigError
from pagoda.units import (
    format_decimal,
    format_nbytes,
    format_rate,
    format_seconds,
    parse_bandwidth,
    parse_flops,
    parse_nbytes,
)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1000, "1,000 B"),
        (327680, "320 KiB"),
        (1536 << 20, "1.5 GiB"),
        (4 << 40, "4 TiB"),
        ((1 << 20) - 1, "1 MiB"),
    ],
)
def test_format_nbytes(nbytes: int, text: str) -> None:
    assert format_nbytes(nbytes) == text


@pytest.mark.parametrize(
    ("text", "nbytes"), [("123", 123), ("1KiB", 1024), ("1.5 g", 3 << 29), ("512MB", 512 << 20), ("2T", 2 << 40)]
)
def test_parse_nbytes(text: str, nbytes: int) -> None:
    assert parse_nbytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "x", "-1", "1 parsec", "1..5G", "GiB", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_nbytes(text)


def test_seconds_and_rates() -> None:
    assert [format_seconds(value) for value in (2.5e-6, 0.0123, 1.5, None)] == ["2.5 µs", "12.3 ms", "1.5 s", "-"]
    assert [format_seconds(value) for value in (0.00099999, 0.000999, 0.99999)] == ["1 ms", "999 µs", "1 s"]
    assert [format_rate(value, "tokens") for value in (1234.5, 6.54, None)] == ["1,234 tokens/s", "6.54 tokens/s", "-"]


@pytest.mark.parametrize(
    ("text", "rate"),
    [("3.35TB/s", 3.35e12), ("900 gb/s", 9e11), ("17GiB/s", 17 << 30), ("5B/s", 5), ("2 MBps", 2e6)],
)
def test_parse_bandwidth(text: str, rate: float) -> None:
    assert parse_bandwidth(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "3TB", "3", "-3TB/s", "0GB/s", "nanB/s", "3 TB/h"])
def test_what_is_no_bandwidth_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"as 3.35TB/s or 900GB/s"):
        parse_bandwidth(text)


@pytest.mark.parametrize(
    ("text", "rate"), [("990TFLOPS", 9.9e14), ("67 gflop/s", 6.7e10), ("1.5PFLOPS", 1.5e15), ("5flops", 5)]
)
def test_parse_flops(text: str, rate: float) -> None:
    assert parse_flops(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "990T", "0TFLOPS", "-1TFLOPS", "infFLOPS"])
def test_what_is_no_rate_of_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="as 990TFLOPS or 67GFLOPS"):
        parse_flops(text)


@pytest.mark.parametrize(
    ("value", "text"), [(3.35e12, "3.35 TB/s"), (999, "999 B/s"), (999_900_000, "1 GB/s"), (5, "5 B/s")]
)
def test_rates_in_powers_of_1000(value: float, text: str) -> None:
    assert format_decimal(value, "B/s") == text
