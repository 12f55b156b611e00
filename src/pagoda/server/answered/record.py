"""Counts the tokens of one call, each once; every API tells these counts in its own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pagoda.cache.report import LoadDecision, MissCause
from pagoda.server.ground.messages import Job

TIERS = ("host", "disk", "remote")


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

    num_read: of the prompts, found in the cache; read_by_tier: of these, by tiers below this device's memory.
    num_output_tokens: of all samples. leases: one for each breakpoint. causes: why no more was read, for each prompt.
    loads: what was decided where tiers had something.
    """

    num_prompt_tokens: int
    num_read: int
    num_output_tokens: int
    leases: tuple[Written, ...]
    causes: tuple[str, ...] = ()
    read_by_tier: Mapping[str, int] = field(default_factory=dict)
    loads: tuple[LoadDecision, ...] = ()

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> Record:
        """As of now; jobs must have been scheduled."""
        reports = [each.cache_report for each in jobs if each.cache_report is not None]
        return cls(
            num_prompt_tokens=sum(len(each.prompt) + each.num_encoder_tokens for each in jobs),
            num_read=sum((each.num_cached_tokens or 0) + each.num_cached_encoder_tokens for each in jobs),
            num_output_tokens=sum(each.num_output_tokens for each in jobs),
            leases=tuple(written for each in jobs for written in _written(each)),
            causes=tuple(str(each.cause) for each in reports),
            read_by_tier={name: sum(each.read_tokens.get(name, 0) for each in reports) for name in TIERS},
            loads=tuple(each.load for each in reports if each.load is not None),
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
        below = {name: self.read_by_tier.get(name, 0) for name in TIERS}
        read = {"device": self.num_read - sum(below.values()), **below}
        told = {**read, "computed": self.num_computed, "cause": self.cause, "leases": leases}
        return told | ({"load": _load(self.loads)} if self.loads else {})

    @property
    def cause(self) -> str | None:
        """Of the first prompt that was not read whole."""
        return next((each for each in self.causes if each != MissCause.NONE), next(iter(self.causes), None))


def _load(loads: Sequence[LoadDecision]) -> dict[str, Any]:
    """What tiers had, what of it was loaded, and the times that were expected; None where nothing was known."""
    return {
        "found": sum(each.num_tokens for each in loads),
        "loaded": sum(each.num_tokens for each in loads if each.is_loaded),
        "bytes": sum(each.nbytes for each in loads),
        "load_seconds": _total([each.load_seconds for each in loads]),
        "compute_seconds": _total([each.compute_seconds for each in loads]),
    }


def _total(numbers: Sequence[float | None]) -> float | None:
    known = [each for each in numbers if each is not None]
    return sum(known) if len(known) == len(numbers) else None


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
