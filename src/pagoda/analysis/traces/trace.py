"""A trace as data: what was asked, when, by whom, and which runs of tokens are the same.

A trace tells tokens apart in runs of `unit_tokens`: blocks with a hash, pages with a name, or single tokens. Each run
has a number; equal numbers mean equal tokens. Knows neither files nor pages of a simulated cache.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from pagoda.cache.prefix.keys import TOKEN_TYPE


class Kind(StrEnum):
    """What a trace tells of its prompts."""

    BLOCKS = "blocks with hashes"
    LENGTHS = "lengths"
    TOKENS = "tokens"
    PAGES = "a request log"


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One request of `num_prompt_tokens`, answered with `num_output_tokens`; `line` is where it stands.

    `prompt` are its runs in order; `sequence` the runs of the prompt and of those tokens of the answer that were
    computed, as far as the trace knows them. Of `LENGTHS` there are none. Requests of other tenants or salts share
    nothing with it. `arrival_seconds` is None where the trace does not say, and so is `num_cached_tokens`: what the
    server that was watched found of the prompt.
    """

    line: int
    num_prompt_tokens: int
    num_output_tokens: int
    prompt: array[int]
    sequence: array[int]
    arrival_seconds: float | None = None
    tenant: str = ""
    salt: str = ""
    num_cached_tokens: int | None = None


@dataclass(frozen=True)
class Fault:
    """A line that was skipped, and why."""

    line: int
    problem: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.problem}"


class Served(NamedTuple):
    """What a server itself found of the prompts of whose requests it said so."""

    num_cached_tokens: int
    num_prompt_tokens: int


@dataclass(frozen=True)
class Trace:
    """All requests of a file in its order, and the lines that are none. Of `LENGTHS` `unit_tokens` is 1."""

    kind: Kind
    unit_tokens: int
    requests: tuple[TracedRequest, ...]
    faults: tuple[Fault, ...] = ()

    @property
    def has_times(self) -> bool:
        return not self.num_without_time

    @property
    def num_without_time(self) -> int:
        return sum(request.arrival_seconds is None for request in self.requests)

    @property
    def served(self) -> Served | None:
        """None if no request says."""
        said = [request for request in self.requests if request.num_cached_tokens is not None]
        found = sum(request.num_cached_tokens or 0 for request in said)
        return Served(found, sum(request.num_prompt_tokens for request in said)) if said else None

    @property
    def num_prompt_tokens(self) -> int:
        return sum(request.num_prompt_tokens for request in self.requests)


@dataclass
class Numbers:
    """Small numbers for whatever stands for runs of tokens: hashes of any kind, names of pages."""

    _known: dict[Hashable, int] = field(default_factory=dict)

    def of(self, things: list[Hashable]) -> array[int]:
        known = self._known
        return array(TOKEN_TYPE, [known.setdefault(thing, len(known)) for thing in things])
