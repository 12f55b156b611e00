"""Rows that tell only how long prompts and answers were: nothing is ever found of such a prompt."""

from __future__ import annotations

from array import array

from pagoda.analysis.traces.fields import OUTPUT_LENGTHS, PROMPT_LENGTHS, LineError, Row, length, seconds, tenant
from pagoda.analysis.traces.trace import TracedRequest
from pagoda.cache.prefix.keys import TOKEN_TYPE

NOTHING = array(TOKEN_TYPE)


def read_lengths(line: int, row: Row, timestamps_per_second: float) -> TracedRequest:
    num_prompt_tokens = length(row, PROMPT_LENGTHS)
    if num_prompt_tokens is None:
        raise LineError("it tells neither a prompt nor how long one is")
    if not num_prompt_tokens:
        raise LineError("its prompt is empty")
    num_output_tokens = length(row, OUTPUT_LENGTHS) or 0
    arrival = seconds(row, timestamps_per_second)
    return TracedRequest(line, num_prompt_tokens, num_output_tokens, NOTHING, NOTHING, arrival, tenant(row))
