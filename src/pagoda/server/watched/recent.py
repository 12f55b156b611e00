"""Remembers how long the last requests took, for charts and for telling clients when to come back."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import fmean
from time import time
from typing import Any

from pagoda.analysis.time import RequestTime
from pagoda.engine.request import FinishReason
from pagoda.server.answered.record import Record
from pagoda.server.ground.messages import Job
from pagoda.server.watched.spent import spent

MOST_REMEMBERED = 240


@dataclass(frozen=True)
class Ended:
    """The numbers of one request that has ended, and where its time went."""

    id: str
    time: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_seconds: float | None
    decode_tokens_per_second: float | None
    seconds: float | None
    finish_reason: str | None
    preemptions: int
    where: RequestTime

    def shown(self, sees_all: bool) -> dict[str, Any]:
        """As data, for somebody who may see what all do together or not."""
        return {name: value for name, value in vars(self).items() if name != "where"} | {
            "spent": spent(self.where, sees_all)
        }


@dataclass
class Past:
    """The last requests that have ended, and what all there have ever been looked up and found in the cache."""

    ended: deque[Ended] = field(default_factory=lambda: deque(maxlen=MOST_REMEMBERED))
    num_ended: int = 0
    queried_tokens: int = 0
    hit_tokens: int = 0

    def add(self, ended: Ended, record: Record) -> None:
        self.ended.append(ended)
        self.num_ended += 1
        self.queried_tokens += record.num_prompt_tokens
        self.hit_tokens += record.num_read

    def since(self, number: int, sees_all: bool) -> list[dict[str, Any]]:
        """What is remembered of those after the first `number` there have ever been, the oldest first."""
        skipped = max(number - (self.num_ended - len(self.ended)), 0)
        return [each.shown(sees_all) for each in islice(self.ended, skipped, None)]

    @property
    def hit_rate(self) -> float:
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0


class Recent:
    """The past of each tenant, and of all together."""

    def __init__(self) -> None:
        self._all = Past()
        self._of: defaultdict[str, Past] = defaultdict(Past)

    def add(self, tenant: str, jobs: Iterable[Job]) -> None:
        for job in jobs:
            ended, record = _ended(job), Record.of([job] if job.num_cached_tokens is not None else [])
            for past in (self._all, self._of[tenant]):
                past.add(ended, record)

    def of(self, tenant: str | None) -> Past:
        """Of a tenant, or of all (None)."""
        return self._all if tenant is None else self._of[tenant]

    @property
    def mean_seconds(self) -> float:
        """Of whole requests; 1 before there are any."""
        return fmean([each.seconds for each in self._all.ended if each.seconds is not None] or [1.0])


def _ended(job: Job) -> Ended:
    metrics = job.metrics
    times = metrics.token_times
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else None
    where = job.time
    if where.ending is None:  # nobody waits for it any more, and the backend will soon hear that
        where = replace(where, ending=FinishReason.ABORT.value)
    return Ended(
        id=job.job_id,
        time=time(),
        prompt_tokens=len(job.prompt),
        cached_tokens=job.num_cached_tokens or 0,
        output_tokens=job.num_output_tokens,
        ttft_seconds=metrics.ttft_seconds,
        decode_tokens_per_second=rate,
        seconds=metrics.e2e_seconds,
        finish_reason=where.ending,
        preemptions=metrics.num_preemptions,
        where=where,
    )
