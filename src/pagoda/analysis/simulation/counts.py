"""What a run has counted: hits, evictions and times, and the figures that follow from them."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

PERCENTILES = (50, 90, 99)
NOTHING_LOADED: Mapping[str, int] = {}


@dataclass(frozen=True)
class Times:
    """What the time model says of requests, one entry for each that ended: seconds on the clock of the simulation.

    num_steps: of all replicas, which were busy for `busy_seconds` in all.
    """

    ttft_seconds: array[float] = field(default_factory=lambda: array("d"))
    e2e_seconds: array[float] = field(default_factory=lambda: array("d"))
    num_output_tokens: int = 0
    num_preemptions: int = 0
    num_steps: int = 0
    busy_seconds: float = 0.0
    duration_seconds: float = 0.0

    @property
    def output_tokens_per_second(self) -> float:
        return self.num_output_tokens / self.duration_seconds if self.duration_seconds else 0.0

    @property
    def requests_per_second(self) -> float:
        return len(self.e2e_seconds) / self.duration_seconds if self.duration_seconds else 0.0


@dataclass
class TierCounts:
    """Of a tier below the caches of a run, all replicas together.

    `hit_tokens` of each request were found there, beyond what the pool had; they count as hits of the run. Bytes are
    tokens where nobody knows of which model pages are. What was written again, since it had been hit, is told apart.
    """

    hit_tokens: array[int]
    num_hit_tokens: int = 0
    written_tokens: int = 0
    written_nbytes: int = 0
    rewritten_nbytes: int = 0
    num_dropped: int = 0


@dataclass
class Counts:
    """Of one run. `hit_tokens` has an entry for each request, -1 for those that can never fit.

    All requests count, so that runs can be compared: of those that can never fit nothing is found, nor computed.
    `evicted_pages` are by reason; `peak_pages` were filled at some time, of all replicas. Bytes are 0 where nobody
    knows them. Where nothing `is_replayed`, as it is certain what would be found, there are neither of these.
    """

    hit_tokens: array[int]
    num_requests: int = 0
    num_too_long: int = 0
    num_hit_requests: int = 0
    num_prompt_tokens: int = 0
    num_hit_tokens: int = 0
    num_refused_tokens: int = 0
    sum_of_shares: float = 0.0
    evicted_pages: dict[str, int] = field(default_factory=dict)
    evicted_nbytes: int = 0
    peak_pages: int = 0
    peak_nbytes: int = 0
    by_replica: list[int] = field(default_factory=list)
    times: Times | None = None
    is_replayed: bool = True
    tiers: dict[str, TierCounts] = field(default_factory=dict)

    @classmethod
    def of(cls, num_requests: int, tiers: Sequence[str] = ()) -> Counts:
        counts = cls(array("q", [-1]) * num_requests)
        counts.tiers = {name: TierCounts(array("q", [0]) * num_requests) for name in tiers}
        return counts

    def add(
        self, number: int, num_prompt_tokens: int, num_hit_tokens: int, loaded: Mapping[str, int] = NOTHING_LOADED
    ) -> None:
        """A request was looked up: of what was found so much was `loaded` from tiers."""
        for name, num_tokens in loaded.items():
            self.tiers[name].hit_tokens[number] = num_tokens
            self.tiers[name].num_hit_tokens += num_tokens
        self.hit_tokens[number] = num_hit_tokens
        self.num_requests += 1
        self.num_hit_requests += num_hit_tokens > 0
        self.num_prompt_tokens += num_prompt_tokens
        self.num_hit_tokens += num_hit_tokens
        self.sum_of_shares += num_hit_tokens / num_prompt_tokens

    def refuse(self, num_prompt_tokens: int) -> None:
        """A request can never fit."""
        self.num_requests += 1
        self.num_too_long += 1
        self.num_prompt_tokens += num_prompt_tokens
        self.num_refused_tokens += num_prompt_tokens

    @property
    def num_pool_tokens(self) -> int:
        """Of the tokens that were found, those that no tier had to bring."""
        return self.num_hit_tokens - sum(tier.num_hit_tokens for tier in self.tiers.values())

    @property
    def token_hit_rate(self) -> float:
        """Of the tokens of all prompts, those that were found."""
        return self.num_hit_tokens / self.num_prompt_tokens if self.num_prompt_tokens else 0.0

    @property
    def request_hit_rate(self) -> float:
        """Of all requests, those of which something was found."""
        return self.num_hit_requests / self.num_requests if self.num_requests else 0.0

    @property
    def mean_request_hit_rate(self) -> float:
        """What was found of a prompt, in the mean over requests."""
        return self.sum_of_shares / self.num_requests if self.num_requests else 0.0

    @property
    def num_computed_tokens(self) -> int:
        return self.num_prompt_tokens - self.num_hit_tokens - self.num_refused_tokens


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest of `values` that so many percent of them do not exceed; None if there are none."""
    if not values:
        return None
    return sorted(values)[max(ceil(percent / 100 * len(values)) - 1, 0)]


def percentiles(values: Sequence[float]) -> Mapping[int, float | None]:
    ordered = sorted(values)
    return {percent: percentile(ordered, percent) for percent in PERCENTILES}
