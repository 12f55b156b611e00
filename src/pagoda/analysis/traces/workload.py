"""A trace cut for pages of some size: every request as the units that its pages are made of.

A unit is as many tokens as a page and a run of the trace have in common, so that a page of 512 tokens over a trace of
blocks of 512 is a single unit and nothing is lost. Knows no cache.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import accumulate, count
from math import gcd
from typing import NamedTuple

from pagoda.analysis.traces.trace import Kind, Trace
from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.cache.prefix.namespace import Namespace
from pagoda.errors import ConfigError

MOST_UNITS = 2**31 - 1  # a token id of the cache has 32 bits


class Asked(NamedTuple):
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
    """The requests of a trace for pages of `page_tokens`, which have `page_units` units of `unit_tokens` each."""

    kind: Kind
    page_tokens: int
    unit_tokens: int
    requests: tuple[Asked, ...]

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
    is_unknown = trace.kind is Kind.LENGTHS
    unit = unit_tokens or (page_tokens if is_unknown else gcd(page_tokens, trace.unit_tokens))
    cut = _unique(trace, unit) if is_unknown else _refined(trace, unit)
    # Many processes are told of them: one namespace is one object.
    namespaces: dict[Namespace, Namespace] = {}
    requests = []
    for number, (request, prompt, sequence) in enumerate(zip(trace.requests, *cut, strict=True)):
        namespace = Namespace(request.salt, tenant=request.tenant)
        requests.append(
            Asked(
                number=number,
                namespace=namespaces.setdefault(namespace, namespace),
                num_prompt_tokens=request.num_prompt_tokens,
                num_output_tokens=request.num_output_tokens,
                prompt=prompt,
                sequence=sequence,
                num_common=_num_common(prompt, sequence),
                num_findable=len(prompt) - (trace.kind is Kind.TOKENS),
                arrival_seconds=request.arrival_seconds,
            )
        )
    return Workload(trace.kind, page_tokens, unit, tuple(requests))


def _unique(trace: Trace, unit: int) -> tuple[list[array[int]], list[array[int]]]:
    """Prompts, and sequences, of which nothing is known but how long they are: all of their tokens are new."""
    counts = [-(-request.num_prompt_tokens // unit) for request in trace.requests]
    stops = list(accumulate(counts))
    _check_numbers(max(stops, default=0))
    prompts = [array(TOKEN_TYPE, range(stop - number, stop)) for stop, number in zip(stops, counts, strict=True)]
    return prompts, prompts


def _refined(trace: Trace, unit: int) -> tuple[list[array[int]], list[array[int]]]:
    """Prompts and sequences, each run as so many units."""
    parts = trace.unit_tokens // unit
    highest = max((max(each.sequence, default=0) for each in trace.requests), default=0)
    _check_numbers((highest + 1) * parts)
    prompts, sequences = [], []
    for request in trace.requests:
        prompt = sequence = _parts(request.prompt, parts, -(-request.num_prompt_tokens // unit))
        if request.sequence is not request.prompt:
            known = request.num_prompt_tokens + max(request.num_output_tokens - 1, 0)
            sequence = _parts(request.sequence, parts, -(-known // unit))
        prompts.append(prompt)
        sequences.append(sequence)
    return prompts, sequences


def _parts(runs: array[int], parts: int, num_units: int) -> array[int]:
    """Each run as so many units, numbered for themselves."""
    if parts == 1:
        return runs if len(runs) == num_units else runs[:num_units]
    units = [run * parts + part for run in runs for part in range(parts)]
    return array(TOKEN_TYPE, units[:num_units])


def _num_common(prompt: array[int], sequence: array[int]) -> int:
    """How many units both begin with."""
    if prompt is sequence or sequence[: len(prompt)] == prompt:
        return len(prompt)
    return next(index for index in range(len(prompt)) if sequence[index : index + 1] != prompt[index : index + 1])


def _check_numbers(highest: int) -> None:
    if highest > MOST_UNITS:
        raise ConfigError("The trace has more different runs of tokens than can be numbered; choose larger pages.")


def shares_nothing(workload: Workload) -> bool:
    """Whether no two requests begin alike, so that no cache can find anything."""
    begins = {(asked.namespace, units[0]) for asked in workload.requests for units in _different(asked)}
    return len(begins) == sum(len(_different(asked)) for asked in workload.requests)


def _different(asked: Asked) -> list[array[int]]:
    """What a request looks for, and what it leaves behind if that begins otherwise."""
    return [asked.prompt] if asked.num_common else [asked.prompt, asked.sequence]


def working_set(workload: Workload) -> tuple[int, int]:
    """How many different pages all requests fill, and how many they leave partly filled."""
    size = workload.page_units
    if shares_nothing(workload):
        lengths = [len(asked.sequence) for asked in workload.requests]
        return sum(number // size for number in lengths), sum(number % size > 0 for number in lengths)
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
