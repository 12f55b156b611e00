"""Counts the tokens of one call, each once; every API tells these counts in its own words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pagoda.cache.report import MissCause
from pagoda.server.ground.messages import Job


@dataclass(frozen=True)
class Written:
    """A breakpoint of a prompt, and the tokens that were computed under it and are kept for `ttl_seconds`."""

    num_tokens: int
    ttl_seconds: float
    is_granted: bool
    num_written: int


@dataclass(frozen=True)
class Record:
    """What one call has cost: prompt = read + computed, all counts in tokens.

    num_read: of the prompts, found in the cache on this device. num_output_tokens: of all samples. leases: one for each
    breakpoint. causes: why no more was read, for each prompt.
    """

    num_prompt_tokens: int
    num_read: int
    num_output_tokens: int
    leases: tuple[Written, ...]
    causes: tuple[str, ...] = ()

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> Record:
        """As of now; jobs must have been scheduled."""
        return cls(
            num_prompt_tokens=sum(len(each.prompt) + each.num_encoder_tokens for each in jobs),
            num_read=sum((each.num_cached_tokens or 0) + each.num_cached_encoder_tokens for each in jobs),
            num_output_tokens=sum(each.num_output_tokens for each in jobs),
            leases=tuple(written for each in jobs for written in _written(each)),
            causes=tuple(str(each.cache_report.cause) for each in jobs if each.cache_report is not None),
        )

    @property
    def num_computed(self) -> int:
        return self.num_prompt_tokens - self.num_read

    @property
    def num_written(self) -> int:
        """Of the computed tokens, those that are kept on purpose."""
        return sum(lease.num_written for lease in self.leases)

    def num_written_for(self, ttl_seconds: float) -> int:
        return sum(lease.num_written for lease in self.leases if lease.ttl_seconds == ttl_seconds)

    def kv(self) -> dict[str, Any]:
        """In our own words."""
        leases = [
            {"tokens": each.num_tokens, "ttl_seconds": each.ttl_seconds, "granted": each.is_granted}
            for each in self.leases
        ]
        read = {"device": self.num_read, "host": 0, "disk": 0, "remote": 0}
        return {**read, "computed": self.num_computed, "cause": self.cause, "leases": leases}

    @property
    def cause(self) -> str | None:
        """Of the first prompt that was not read whole."""
        return next((each for each in self.causes if each != MissCause.NONE), next(iter(self.causes), None))


def _written(job: Job) -> list[Written]:
    """What each breakpoint of a job has brought: the part that was not read, nor is under an earlier one."""
    read = job.num_cached_tokens or 0
    points = [0, *(max(each.num_tokens, read) for each in job.breakpoints)]
    written = []
    for (start, stop), wish, result in zip(pairwise(points), job.breakpoints, job.lease_results, strict=False):
        computed = max(stop - max(start, read), 0)
        num_written = min(computed, max(result.num_new_tokens, 0)) if result.granted else 0
        written.append(Written(wish.num_tokens, wish.ttl_seconds, result.granted, num_written))
    return written
