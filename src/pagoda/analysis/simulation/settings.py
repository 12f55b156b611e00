"""What one run of a simulation is of: a cache, who may have what of it, and how many of them there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from pagoda.analysis.simulation.tiers import TierOptions
from pagoda.config import NO_TENANTS, TenantShare
from pagoda.errors import ConfigError
from pagoda.planning.memory import MemoryPlan
from pagoda.registry import names

MOST_REPLICAS = 1024
NO_TIERS = TierOptions()
OPTIMUM = "belady"  # which knows what comes, and so is no policy of a cache


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run. Raises ConfigError.

    memory: the groups of a model that has several kinds. page_nbytes: of a page of each group, where that is known.
    ttl_seconds: what nobody has used for so long goes. tenants: pages reserved for them. step_tokens: how
    many are computed at a time where tokens are known, and in a step of the time model. max_num_seqs: how many run at
    once in it. tiers: what lies below each cache.
    """

    policy: str = "lru"
    memory: MemoryPlan | None = None
    page_nbytes: tuple[int, ...] = ()
    ttl_seconds: float | None = None
    tenants: Mapping[str, TenantShare] = field(default_factory=lambda: NO_TENANTS)
    num_replicas: int = 1
    routing: str = "round-robin"
    step_tokens: int = 2048
    max_num_seqs: int = 256
    tiers: TierOptions = NO_TIERS

    def __post_init__(self) -> None:
        if self.policy not in policies():
            raise ConfigError(f"There is no policy {self.policy!r}; choose one of: {', '.join(policies())}.")
        if self.num_replicas <= 0:
            raise ConfigError(f"There are {self.num_replicas} replicas; there must be at least one.")
        if self.num_replicas > MOST_REPLICAS:
            raise ConfigError(f"There are {self.num_replicas} replicas; simulate at most {MOST_REPLICAS}.")
        if self.ttl_seconds is not None and not 0 < self.ttl_seconds < inf:
            raise ConfigError(f"The time to live is {self.ttl_seconds} s; it must be positive, and not infinite.")
        if self.policy == OPTIMUM and (self.num_replicas > 1 or self.tenants):
            raise ConfigError(f"The bound {OPTIMUM!r} is of one cache without shares; leave out replicas and tenants.")
        if self.policy == OPTIMUM and self.tiers.names:
            raise ConfigError(f"The bound {OPTIMUM!r} is of one cache without tiers; leave out one of the two.")


def policies() -> tuple[str, ...]:
    """Names of all orders of eviction, the optimum last."""
    return (*names("eviction"), OPTIMUM)
