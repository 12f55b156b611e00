"""The runs of a simulation as tables for people, no line of which is wider than their screen.

Where not all columns go beside one another, the rest of them stand in further tables below, each with what a row is of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pagoda.analysis.simulation.report import Row
from pagoda.analysis.simulation.settings import OPTIMUM
from pagoda.units import NOT_MEASURED, format_nbytes, format_rate, format_seconds

GAP = 2  # characters between columns


class Column(NamedTuple):
    """A heading and what stands below it, a text for each run."""

    heading: str
    cells: list[str]

    @property
    def width(self) -> int:
        return max(map(len, (self.heading, *self.cells)))


def tables(rows: Sequence[Row], width: int) -> list[str]:
    """Of all runs; a single column is shown whole, however narrow the screen is."""
    names = [Column("policy", [row["policy"] for row in rows]), Column("capacity", [row["capacity"] for row in rows])]
    found, timed = _columns(rows, _of_cache(rows)), _columns(rows, _of_times(rows))
    left = width - sum(each.width + GAP for each in names)
    parts = list(_parts([*found, *timed], left))
    if len(parts) > 1 and timed:
        parts = [*_parts(found, left), *_parts(timed, left)]
    return [_table([*names, *part]) for part in parts]


def _parts(columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """As many as go beside one another, in order."""
    part: list[Column] = []
    for column in columns:
        if part and sum(each.width + GAP for each in part) + column.width > width:
            yield part
            part = []
        part.append(column)
    yield part


def _table(columns: Sequence[Column]) -> str:
    """Policies begin at the left, whatever is compared ends at the right."""
    lines = zip(*([column.heading, *column.cells] for column in columns), strict=True)
    widths = [column.width for column in columns]
    return "\n".join(
        (" " * GAP)
        .join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        .rstrip()
        for line in lines
    )


# What a column is called, and what it tells of a run.
Named = tuple[str, Callable[[Row], str]]


def _columns(rows: Sequence[Row], wanted: Sequence[Named]) -> list[Column]:
    return [Column(heading, [cell(row) for row in rows]) for heading, cell in wanted]


def _of_cache(rows: Sequence[Row]) -> list[Named]:
    """What there is to tell of these runs."""
    wanted: list[Named] = [("pages", _pages)]
    if any(row["capacity_bytes"] is not None for row in rows):
        wanted.append(("memory", _memory))
    wanted += [
        ("tokens found", lambda row: f"{row['token_hit_rate']:.2%}"),
        ("of requests", lambda row: f"{row['mean_request_hit_rate']:.2%}"),
        *_of_tiers(rows),
        ("evicted", lambda row: _count(row["evicted_room_pages"])),
    ]
    if any(row["evicted_expired_pages"] for row in rows):
        wanted.append(("expired", lambda row: _count(row["evicted_expired_pages"])))
    if any(row["too_long_requests"] for row in rows):
        wanted.append(("too long", lambda row: _count(row["too_long_requests"])))
    return wanted


def _of_tiers(rows: Sequence[Row]) -> list[Named]:
    """Where tokens were found, and what was written there."""
    found = [_named(f"in {name}", f"{name}_hit_tokens", _share) for name in ("pool", "host", "disk")]
    written = [_named(f"to {name}", f"{name}_written_tokens", _total) for name in ("host", "disk")]
    return [(heading, cell) for key, heading, cell in (*found, *written) if key in rows[0]]


def _named(heading: str, key: str, tell: Callable[[Row, str], str]) -> tuple[str, str, Callable[[Row], str]]:
    return key, heading, lambda row: tell(row, key)


def _total(row: Row, name: str) -> str:
    return _count(row[name])


def _share(row: Row, name: str) -> str:
    """Of all tokens of prompts."""
    return f"{row[name] / row['prompt_tokens']:.2%}" if row["prompt_tokens"] else NOT_MEASURED


def _of_times(rows: Sequence[Row]) -> list[Named]:
    """Of the time model, in which the bound has no part."""
    if not any("ttft_p50_seconds" in row for row in rows):
        return []
    return [
        ("first token p50", lambda row: _of_time(row, "ttft_p50_seconds", format_seconds)),
        ("p90", lambda row: _of_time(row, "ttft_p90_seconds", format_seconds)),
        ("p99", lambda row: _of_time(row, "ttft_p99_seconds", format_seconds)),
        ("output", lambda row: _of_time(row, "output_tokens_per_second", lambda rate: format_rate(rate, "tokens"))),
        ("sent back", lambda row: _of_time(row, "preemptions", _count)),
    ]


def _of_time(row: Row, name: str, format: Callable[[Any], str]) -> str:
    return "" if row["policy"] == OPTIMUM else format(row[name])


def _pages(row: Row) -> str:
    return "unlimited" if row["capacity_pages"] is None else f"{row['capacity_pages']:,}"


def _memory(row: Row) -> str:
    return "" if row["capacity_bytes"] is None else format_nbytes(row["capacity_bytes"])


def _count(number: int | None) -> str:
    return NOT_MEASURED if number is None else f"{number:,}"
