"""A trace cut for pages of some size: every request as the units that its pages are made of.

A unit is as many tokens as a page and a run of the trace have in common, so that a page of 512 tokens over a trace of
blocks of 512 is a single unit and nothing is lost. Knows no cache.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import gcd

from pagoda.analysis.traces.trace import Kind, Trace, TracedRequest
from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.cache.prefix.namespace import Namespace
from pagoda.errors import ConfigError

MOST_UNITS = 2**31 - 1  # a token id of the cache has 32 bits


@dataclass(frozen=True, slots=True)
class Asked:
    """One request in units.

    Of the prompt up to `num_findable` units may be found. It shares its first `num_common` units with the `sequence`
    that it leaves behind, which has more where the trace knows what was answered. `number` counts requests from 0.
    """

    number: int
    namespace: Namespace
    num_prompt_tokens: int
    num_output_tokens: int
    prompt: array[int]
    sequence: array[int]
    num_common: int
    num_findable: int
    arrival_seconds: float | None


@dataclass(frozen=True)
class Workload:
    """The requests of a trace for pages of `page_tokens`, which have `page_units` units of `unit_tokens` each.

    With `is_exact` units are tokens, and the last token of a prompt is computed as the engine does it.
    """

    kind: Kind
    page_tokens: int
    unit_tokens: int
    requests: tuple[Asked, ...]
    is_exact: bool

    @property
    def page_units(self) -> int:
        return self.page_tokens // self.unit_tokens

    @property
    def computes_last(self) -> bool:
        """Whether the last token of a prompt is never found: no rule says otherwise where an engine was watched."""
        return self.kind in (Kind.TOKENS, Kind.PAGES)

    def found_tokens(self, asked: Asked, num_units: int) -> int:
        """How many tokens of the prompt its first units are."""
        most = asked.num_prompt_tokens - self.computes_last
        return min(num_units * self.unit_tokens, most)

    def num_pages(self, asked: Asked) -> int:
        """The pages that it takes alone."""
        return -(-len(asked.sequence) // self.page_units)


def prepare(trace: Trace, page_tokens: int, unit_tokens: int | None = None) -> Workload:
    """Cut a trace for pages of `page_tokens`, into units of `unit_tokens` if they are to be so small."""
    if page_tokens <= 0:
        raise ConfigError(f"The page size is {page_tokens}; it must be positive.")
    unit = unit_tokens or (page_tokens if trace.kind is Kind.LENGTHS else gcd(page_tokens, trace.unit_tokens))
    is_exact = trace.kind is Kind.TOKENS
    if trace.kind is Kind.LENGTHS:
        requests = tuple(_unique(trace, unit))
    else:
        requests = tuple(_refined(trace, unit, computes_last=is_exact))
    return Workload(trace.kind, page_tokens, unit, requests, is_exact)


def _unique(trace: Trace, unit: int) -> Iterator[Asked]:
    """Prompts of which nothing is known but how long they are: all of their tokens are new."""
    start = 0
    for number, request in enumerate(trace.requests):
        stop = start + -(-request.num_prompt_tokens // unit)
        _check_numbers(stop)
        units = array(TOKEN_TYPE, range(start, stop))
        start = stop
        yield _asked(number, request, units, units, len(units))


def _refined(trace: Trace, unit: int, computes_last: bool) -> Iterator[Asked]:
    parts = trace.unit_tokens // unit
    highest = max((max(each.sequence, default=0) for each in trace.requests), default=0)
    _check_numbers((highest + 1) * parts)
    for number, request in enumerate(trace.requests):
        prompt = _parts(request.prompt, parts, -(-request.num_prompt_tokens // unit))
        sequence = prompt
        if request.sequence is not request.prompt:
            known = request.num_prompt_tokens + max(request.num_output_tokens - 1, 0)
            sequence = _parts(request.sequence, parts, -(-known // unit))
        yield _asked(number, request, prompt, sequence, len(prompt) - computes_last)


def _asked(number: int, request: TracedRequest, prompt: array[int], sequence: array[int], num_findable: int) -> Asked:
    num_common = len(prompt) if sequence[: len(prompt)] == prompt else _num_common(prompt, sequence)
    return Asked(
        number,
        Namespace(request.salt, tenant=request.tenant),
        request.num_prompt_tokens,
        request.num_output_tokens,
        prompt,
        sequence,
        num_common,
        num_findable,
        request.arrival_seconds,
    )


def _parts(runs: array[int], parts: int, num_units: int) -> array[int]:
    """Each run as so many units, numbered for themselves."""
    if parts == 1:
        return runs if len(runs) == num_units else runs[:num_units]
    units = [run * parts + part for run in runs for part in range(parts)]
    return array(TOKEN_TYPE, units[:num_units])


def _num_common(left: Sequence[int], right: Sequence[int]) -> int:
    return next(
        (i for i, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), min(len(left), len(right))
    )


def _check_numbers(highest: int) -> None:
    if highest > MOST_UNITS:
        raise ConfigError("The trace has more different runs of tokens than can be numbered; choose larger pages.")


def working_set(workload: Workload) -> tuple[int, int]:
    """How many different pages all requests fill, and how many they leave partly filled."""
    size = workload.page_units
    nodes: dict[tuple[object, bytes], int] = {}
    tickets, num_partial = count(1), 0
    for asked in workload.requests:
        node: object = asked.namespace
        units, whole = asked.sequence.tobytes(), len(asked.sequence) // size
        step = size * asked.sequence.itemsize
        for at in range(0, whole * step, step):
            key = (node, units[at : at + step])
            node = nodes.get(key) or nodes.setdefault(key, next(tickets))
        num_partial += len(asked.sequence) % size > 0
    return len(nodes), num_partial
