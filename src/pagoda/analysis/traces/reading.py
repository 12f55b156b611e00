"""Reads a trace, whatever kind of file it is in: the first lines say which.

JSON lines, one array of JSON, or CSV with a header. A line that is no request is a fault: it is skipped, or ends the
reading where it is `strict`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import orjson

from pagoda.analysis.traces.blocks import BlockReader, find_block_tokens
from pagoda.analysis.traces.fields import LineError, Row
from pagoda.analysis.traces.files import numbered_lines
from pagoda.analysis.traces.lengths import read_lengths
from pagoda.analysis.traces.request_log import RequestLogReader, is_request_log, page_tokens_of
from pagoda.analysis.traces.texts import TextReader, Tokens, has_text
from pagoda.analysis.traces.trace import Fault, Kind, Trace, TracedRequest
from pagoda.checks import shown
from pagoda.errors import TraceError

NUM_LOOKED_AT = 1000  # rows, before it is decided what a trace is
OFTEN = 1024  # lines between two calls of `tell`
PER_SECOND = {"s": 1.0, "ms": 1e3}


@dataclass(frozen=True)
class ReadOptions:
    """How to read a trace.

    tokens: makes tokens of texts, once there are some. block_tokens: of a block with a hash; None finds out. time_unit:
    of timestamps that are numbers, "s" or "ms"; None takes ms in JSON and s in CSV. strict: the first line that is no
    request ends the reading. most_requests: how many are read. tell: is called now and then with the number of lines.
    """

    tokens: Callable[[], Tokens]
    block_tokens: int | None = None
    time_unit: str | None = None
    strict: bool = False
    most_requests: int | None = None
    tell: Callable[[int], None] = field(default=lambda _: None)


def read_trace(path: Path, options: ReadOptions) -> Trace:
    """Raises ConfigError for a file that cannot be read, TraceError for one that has no request."""
    lines = numbered_lines(path)
    first = next(lines, None)
    if first is None:
        raise TraceError(f"{path} is empty; give a trace.")
    lines = chain([first], lines)
    if first[1].startswith(b"["):
        rows, usual = _entries(path, lines), "ms"
    elif first[1].startswith(b"{"):
        rows, usual = map(_json_row, lines), "ms"
    else:
        rows, usual = _csv_rows(path, lines), "s"
    return _Reading(path, options, PER_SECOND[options.time_unit or usual]).run(rows)


# A row, or why the line is none, with its number.
Numbered = tuple[int, Row | LineError]


class _Reading:
    """One file on its way to a trace."""

    def __init__(self, path: Path, options: ReadOptions, timestamps_per_second: float) -> None:
        self._path = path
        self._options = options
        self._per_second = timestamps_per_second
        self._faults: list[Fault] = []

    def run(self, rows: Iterator[Numbered]) -> Trace:
        looked_at = list(islice(rows, NUM_LOOKED_AT))
        kind, unit_tokens, read = self._reader([row for _, row in looked_at if not isinstance(row, LineError)])
        requests: list[TracedRequest] = []
        most = self._options.most_requests
        for line, row in chain(looked_at, rows):
            if most is not None and len(requests) >= most:
                break
            try:
                if isinstance(row, LineError):
                    raise row
                requests += read(line, row)
            except LineError as error:
                self._fault(line, error)
            if line % OFTEN == 0:
                self._options.tell(line)
        if not requests:
            more = f" ({self._faults[0]})" if self._faults else ""
            raise TraceError(f"{self._path} has no request that can be replayed{more}.")
        return Trace(kind, unit_tokens, tuple(requests[:most]), tuple(self._faults))

    def _fault(self, line: int, error: LineError) -> None:
        fault = Fault(line, str(error))
        if self._options.strict:
            raise TraceError(f"{self._path}, {fault}.") from error
        self._faults.append(fault)

    def _reader(self, rows: list[Row]) -> tuple[Kind, int, Callable[[int, Row], list[TracedRequest]]]:
        """Which kind of trace it is, by its first row that is one, and what makes requests of its rows."""
        for row in rows:
            if is_request_log(row):
                return self._of_log(row)
            if "hash_ids" in row:
                return self._of_blocks([each for each in rows if "hash_ids" in each])
            if has_text(row):
                texts = TextReader(self._options.tokens(), self._per_second)
                return Kind.TOKENS, 1, texts.read
        return Kind.LENGTHS, 1, lambda line, row: [read_lengths(line, row, self._per_second)]

    def _of_log(self, row: Row) -> tuple[Kind, int, Callable[[int, Row], list[TracedRequest]]]:
        try:
            log = RequestLogReader(page_tokens_of(row))
        except LineError as error:
            raise TraceError(f"{self._path} is a request log of which {error}.") from error
        return Kind.PAGES, log.page_tokens, lambda line, row: [log.read(line, _need(row, "pages"))]

    def _of_blocks(self, rows: list[Row]) -> tuple[Kind, int, Callable[[int, Row], list[TracedRequest]]]:
        size = self._options.block_tokens or find_block_tokens(rows)
        blocks = BlockReader(size, self._per_second)
        return Kind.BLOCKS, size, lambda line, row: [blocks.read(line, _need(row, "hash_ids"))]


def _need(row: Row, name: str) -> Row:
    if name not in row:
        raise LineError(f"it has no {name}")
    return row


def _json_row(numbered: tuple[int, bytes]) -> Numbered:
    number, text = numbered
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = _any_json(text)
    if (
        isinstance(value, dict)
        and isinstance(hashes := value.get("hash_ids"), list)
        and float in set(map(type, hashes))
    ):
        value = _any_json(text)
    return number, _as_row(value)


def _any_json(text: bytes) -> Any:
    """Numbers of any size, of which orjson makes floats that are equal where hashes are not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return LineError(f"it is no JSON: {error}")


def _as_row(value: Any) -> Row | LineError:
    if isinstance(value, dict | LineError):
        return value
    return LineError(f"it is {shown(value)}; it must be an object")


def _entries(path: Path, lines: Iterable[tuple[int, bytes]]) -> Iterator[Numbered]:
    """The objects of one array of JSON, by their place in it."""
    text = b"\n".join(line for _, line in lines)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path} begins as an array of JSON and is none: {error}.") from error
    return ((number, _as_row(value)) for number, value in enumerate(values, start=1))


def _csv_rows(path: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[Numbered]:
    _, first = next(lines)
    names = _columns(first)
    if isinstance(names, LineError) or len(set(names)) < 2 or any(_is_number(name) for name in names):
        raise TraceError(
            f"{path} is neither JSON lines nor CSV with a header such as TIMESTAMP,ContextTokens,GeneratedTokens."
        )
    for number, line in lines:
        values = _columns(line)
        if isinstance(values, LineError):
            yield number, values
        elif len(values) != len(names):
            yield number, LineError(f"it has {len(values)} columns and the header {len(names)}")
        else:
            yield number, dict(zip(names, values, strict=True))


def _columns(line: bytes) -> list[str] | LineError:
    try:
        return [value.strip() for value in next(csv.reader([line.decode("utf-8")]))]
    except (UnicodeDecodeError, csv.Error, StopIteration) as error:
        return LineError(f"it is no line of CSV: {error}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
