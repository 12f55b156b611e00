"""What was recorded of a run, as data: requests, and what the cache held meanwhile. Has lengths and no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.analysis.time import RequestTime

Rows = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class RequestRecord:
    """One request, in seconds since its scenario began; None for what did not happen."""

    name: str
    arrival: float
    first_scheduled: float | None
    first_token: float | None
    ended: float
    time: RequestTime

    @property
    def spans(self) -> list[tuple[str, float, float]]:
        """Its phases one after the other; what it waited between its steps is part of prefill and decode."""
        scheduled = self.ended if self.first_scheduled is None else self.first_scheduled
        token = self.ended if self.first_token is None else self.first_token
        return [("queue", self.arrival, scheduled), ("prefill", scheduled, token), ("decode", token, self.ended)]


@dataclass(frozen=True)
class CacheSample:
    """What the cache held at a moment, in bytes: pages in use and idle of each kind, and unfilled room in those in use.

    Of room it is known for the kind that keeps most tokens, and 0 for others.

    `hit_tokens` of `queried_tokens` had been found since the scenario began.
    """

    seconds: float
    hit_tokens: int
    queried_tokens: int
    in_use: tuple[int, ...]
    idle: tuple[int, ...]
    unfilled: tuple[int, ...]

    @property
    def hit_rate(self) -> float:
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0


@dataclass(frozen=True)
class PageMap:
    """The state of every page of a kind at a moment, or of one in `stride`; `ShownState` has the states.

    After them come `num_free_after` pages, all of them free.
    """

    kind: str
    states: bytes
    stride: int
    num_free_after: int
    page_nbytes: int
    page_tokens: int


@dataclass(frozen=True)
class ScenarioRecord:
    """One scenario: its `figures` are median, lowest and highest; `kinds` name what samples have the bytes of.

    `maps` are of the moment when most pages were in use.
    """

    name: str
    figures: Sequence[tuple[str, str, str, str]]
    requests: Sequence[RequestRecord]
    kinds: Sequence[str]
    samples: Sequence[CacheSample]
    maps: Sequence[PageMap]

    @property
    def peak(self) -> CacheSample | None:
        """The moment when most was in use."""
        return max(self.samples, key=lambda sample: sum(sample.in_use), default=None)


@dataclass(frozen=True)
class RunRecord:
    """All of a run. `budget_nbytes` is of all pages and states."""

    title: str
    when: str
    machine: Rows
    configuration: Rows
    weight_nbytes: int
    budget_nbytes: int
    scenarios: Sequence[ScenarioRecord]
