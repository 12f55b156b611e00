"""Rows of the engine's own request log (`pagoda serve --request-log`): lengths and names of pages.

The tokens of a prompt's last page are named alone, and so are those of a sequence's last one. Whoever asks the same
again hits that page of the first sequence, whatever was answered there.
"""

from __future__ import annotations

from array import array
from typing import Any

from pagoda.analysis.traces.fields import (
    CACHED_TOKENS,
    OUTPUT_LENGTHS,
    PROMPT_LENGTHS,
    LineError,
    Row,
    length,
    seconds,
    tenant,
)
from pagoda.analysis.traces.trace import Numbers, TracedRequest
from pagoda.checks import is_whole, shown

FORMAT = "pagoda.requests/1"  # what every line of a log says that it is


class RequestLogReader:
    """Makes requests of rows of one log, all with pages of the same size."""

    def __init__(self, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self._numbers = Numbers()
        self._tails: dict[str, Any] = {}  # by the name of a prompt's tail, the page of a sequence that begins with it

    def read(self, line: int, row: Row) -> TracedRequest:
        if row.get("page_tokens") != self.page_tokens:
            raise LineError(f"its pages have {shown(row.get('page_tokens'))} tokens, those before {self.page_tokens}")
        num_prompt_tokens, num_output_tokens = length(row, PROMPT_LENGTHS), length(row, OUTPUT_LENGTHS)
        if not num_prompt_tokens:
            raise LineError("its prompt is empty")
        names, num_output_tokens = _names(row), num_output_tokens or 0
        num_whole, rest = divmod(num_prompt_tokens, self.page_tokens)
        num_pages = -(-(num_prompt_tokens + max(num_output_tokens - 1, 0)) // self.page_tokens)
        if len(names) != num_pages:
            raise LineError(f"it names {len(names)} pages of {num_pages}")
        sequence = self._numbers.of([*names])
        prompt = sequence[:num_whole]
        if rest:
            tail = row.get("prompt_tail")
            if not isinstance(tail, str):
                raise LineError(f"prompt_tail is {shown(tail)}; it must be the name of a page")
            prompt = prompt + array(prompt.typecode, [self._tails.setdefault(tail, sequence[num_whole])])
        return TracedRequest(
            line,
            num_prompt_tokens,
            num_output_tokens,
            prompt,
            sequence,
            arrival_seconds=seconds(row, 1e3),
            tenant=tenant(row),
            salt=str(row.get("salt") or ""),
            num_cached_tokens=_cached(row, num_prompt_tokens),
        )


def is_request_log(row: Row) -> bool:
    """Whether a row says that it is of such a log."""
    return row.get("log") == FORMAT


def page_tokens_of(row: Row) -> int:
    """Raises LineError if a row does not say."""
    value = row.get("page_tokens")
    if not is_whole(value) or not 0 < int(value or 0) < 1 << 20:
        raise LineError(f"page_tokens is {shown(value)}; it must be a number of tokens")
    return int(value or 0)


def _cached(row: Row, num_prompt_tokens: int) -> int | None:
    number = length(row, CACHED_TOKENS)
    if number is not None and number > num_prompt_tokens:
        raise LineError(f"cached_tokens is {number}, and its prompt has {num_prompt_tokens}")
    return number


def _names(row: Row) -> list[str]:
    names, tail = row.get("pages"), row.get("tail")
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise LineError(f"pages is {shown(names)}; it must be a list of names")
    return [*names, tail] if isinstance(tail, str) else names
