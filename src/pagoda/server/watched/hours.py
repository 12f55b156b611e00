"""Remembers what the last hours were like: a sample every ten seconds, of each tenant and of all together.

Samples are kept in memory alone, and bounded: a time in which nothing happened leaves none. Knows jobs; who may see
which samples is the business of `own/kv.py`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from math import ceil
from time import monotonic, time
from typing import Any

from pagoda.server.ground.messages import Job

SAMPLE_SECONDS = 10.0
KEPT_SECONDS = 6 * 3600.0
MOST_SAMPLES = round(KEPT_SECONDS / SAMPLE_SECONDS)


@dataclass(frozen=True)
class Sample:
    """What happened in some seconds, which ended at `time`, and how many requests there were then.

    The time to first token is of the requests that ended.
    """

    time: float
    seconds: float
    tokens_per_second: float
    requests_per_second: float
    waiting: int
    running: int
    ttft_p95_seconds: float | None
    errors: int

    @property
    def is_quiet(self) -> bool:
        return not (self.tokens_per_second or self.requests_per_second or self.waiting or self.running or self.errors)


@dataclass
class Track:
    """The samples of one tenant, or of all together, and what has been counted since the last one."""

    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=MOST_SAMPLES))
    num_kept: int = 0  # ever
    _ttft_seconds: list[float] = field(default_factory=list)
    _num_ended: int = 0
    _num_errors: int = 0
    _num_tokens: int = 0  # ever, of requests that have ended
    _num_tokens_before: int = 0  # ever, of all requests, at the last sample

    def add(self, job: Job) -> None:
        """A request has ended."""
        self._num_ended += 1
        self._num_tokens += job.num_output_tokens
        if job.metrics.ttft_seconds is not None:
            self._ttft_seconds.append(job.metrics.ttft_seconds)

    def add_error(self) -> None:
        self._num_errors += 1

    def take(self, now: float, seconds: float, in_flight: Sequence[Job]) -> None:
        """The sample of the last `seconds`."""
        waiting = sum(job.metrics.first_scheduled is None for job in in_flight)
        num_tokens = self._num_tokens + sum(job.num_output_tokens for job in in_flight)
        sample = Sample(
            time=now,
            seconds=seconds,
            tokens_per_second=max(num_tokens - self._num_tokens_before, 0) / seconds,
            requests_per_second=self._num_ended / seconds,
            waiting=waiting,
            running=len(in_flight) - waiting,
            ttft_p95_seconds=_p95(self._ttft_seconds),
            errors=self._num_errors,
        )
        self._ttft_seconds, self._num_ended, self._num_errors = [], 0, 0
        self._num_tokens_before = num_tokens
        self._keep(sample)

    def since(self, number: int) -> list[dict[str, Any]]:
        """Of the samples after the first `number` there have ever been those that are kept, the oldest first."""
        skipped = max(number - (self.num_kept - len(self.samples)), 0)
        return [asdict(each) for each in islice(self.samples, skipped, None)]

    def _keep(self, sample: Sample) -> None:
        if not sample.is_quiet:
            self.samples.append(sample)
            self.num_kept += 1
        while self.samples and self.samples[0].time < sample.time - KEPT_SECONDS:
            self.samples.popleft()


class Hours:
    """The track of each tenant, and of all together. Used on the event loop's thread only."""

    def __init__(self) -> None:
        self._all = Track()
        self._of: defaultdict[str, Track] = defaultdict(Track)

    def add(self, tenant: str, jobs: Iterable[Job]) -> None:
        """Requests of a tenant have ended."""
        for job in jobs:
            self._all.add(job)
            self._of[tenant].add(job)

    def add_error(self, tenant: str | None) -> None:
        """A request was refused or failed; None if nobody knows whose it was."""
        self._all.add_error()
        if tenant is not None:
            self._of[tenant].add_error()

    def of(self, tenant: str | None) -> Track:
        """Of a tenant, or of all (None)."""
        return self._all if tenant is None else self._of[tenant]

    def take(self, now: float, seconds: float, in_flight: Iterable[tuple[str, Job]]) -> None:
        """A sample of everything; those in flight come with their tenants."""
        by_tenant: defaultdict[str, list[Job]] = defaultdict(list)
        for tenant, job in in_flight:
            by_tenant[tenant].append(job)
        for tenant in {*self._of, *by_tenant}:
            self._of[tenant].take(now, seconds, by_tenant[tenant])
        self._all.take(now, seconds, [job for jobs in by_tenant.values() for job in jobs])

    async def run(self, in_flight: Callable[[], Iterable[tuple[str, Job]]]) -> None:
        """Take samples until cancelled."""
        before = monotonic()
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            now = monotonic()
            self.take(time(), now - before, in_flight())
            before = now


def _p95(values: list[float]) -> float | None:
    """The smallest of `values` that 95 % of them do not exceed."""
    return sorted(values)[ceil(0.95 * len(values)) - 1] if values else None
