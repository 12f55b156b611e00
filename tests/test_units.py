"""Bytes, seconds and rates as text."""

from __future__ import annotations

import pytest

from pagoda.errors import ConfigError
from pagoda.units import format_nbytes, format_rate, format_seconds, parse_nbytes


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1000, "1,000 B"), (327680, "320 KiB"), (1536 << 20, "1.5 GiB"), (4 << 40, "4 TiB")],
)
def test_format_nbytes(nbytes: int, text: str) -> None:
    assert format_nbytes(nbytes) == text


@pytest.mark.parametrize(
    ("text", "nbytes"), [("123", 123), ("1KiB", 1024), ("1.5 g", 3 << 29), ("512MB", 512 << 20), ("2T", 2 << 40)]
)
def test_parse_nbytes(text: str, nbytes: int) -> None:
    assert parse_nbytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "x", "-1", "1 parsec", "1..5G", "GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_nbytes(text)


def test_seconds_and_rates() -> None:
    assert [format_seconds(value) for value in (2.5e-6, 0.0123, 1.5, None)] == ["2.5 µs", "12.3 ms", "1.5 s", "-"]
    assert [format_rate(value, "tokens") for value in (1234.5, 6.54, None)] == ["1,234 tokens/s", "6.54 tokens/s", "-"]
