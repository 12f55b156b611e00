"""The engine's configuration, validated once, and the only place that reads the environment.

Names and meanings are vLLM's where the meaning is the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import inf

from pagoda.errors import ConfigError

DTYPES = ("auto", "float32", "float16", "bfloat16")
DEFAULT_KV_CACHE_NBYTES = 4 << 30
DEFAULT_KV_CACHE_SHARE = 0.4  # of the memory available at start-up
DEFAULT_LEASE_SHARE = 0.5  # of the pages, where no tenants are named


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What Pagoda takes from environment variables; each has the prefix PAGODA_ and the field's name in capitals."""

    kernels: str = "auto"  # auto, native or reference
    kernel_isa: str | None = None  # amx, avx512_bf16, avx512, avx2 or baseline
    poison_pages: bool = False  # fill fresh pages with NaN: a read of what was never written shows
    log_level: str = "WARNING"

    @classmethod
    def read(cls) -> Environment:
        values: dict[str, object] = {}
        for name in (each.name for each in fields(cls)):
            text = os.environ.get(f"PAGODA_{name.upper()}")
            if text is not None:
                values[name] = text not in ("", "0", "false") if name == "poison_pages" else text
        return cls(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TenantShare:
    """What one tenant can be sure of, as shares (0 to 1) of the pages of every layer group.

    page_quota: pages that no other tenant can take from it. lease_budget: pages that its leases may keep, which are
    reserved for it as well. weight: how much of the steps and seats it has beside others that want them, who have 1
    unless they say otherwise. Raises ConfigError for a value out of range.
    """

    page_quota: float = 0.0
    lease_budget: float = 0.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name, share in (("page_quota", self.page_quota), ("lease_budget", self.lease_budget)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} is {share}; give a share of the pages between 0 and 1.")
        if not 0 < self.weight < inf:
            raise ConfigError(f"weight is {self.weight}; it must be above 0.")

    @property
    def reserved(self) -> float:
        return max(self.page_quota, self.lease_budget)


def share_of(share: float, num_pages: int) -> int:
    """Whole pages of a share."""
    return int(share * num_pages + 1e-6)  # 0.29 of 100 are 29


def check_tenants(tenants: Mapping[str, TenantShare]) -> None:
    """Raise ConfigError if tenants are promised more than there is."""
    total = sum(share.reserved for share in tenants.values())
    if total > 1 + 1e-9:
        raise ConfigError(f"The tenants reserve {total:g} of all pages; lower page_quota or lease_budget to sum to 1.")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How to run one model. `None` and "auto" are resolved from the model and the machine at start-up.

    kv_cache_dtype: a format, a pair for keys and values ("int8/int4"), or formats by reach ("full=int8,sliding=bf16").
    kv_cache_dtype_skip_layers: layers that keep the model's precision, by number or by reach ("sliding").
    block_size: tokens per page, a multiple of 16.
    max_num_batched_tokens: tokens computed in one step; longer prompts are computed in chunks.
    kv_cache_memory_bytes: size of the page pools; None takes 40 % of free memory, at most 4 GiB.
    snapshot_memory_share: how much of that is for copies of recurrent states, from which others resume.
    snapshot_interval_tokens: how far apart such copies are in a long prompt; None follows from the share, 0 makes none.
    tenants: pages reserved by tenant; those not named here share the rest, and may lease only where nobody is named.
    """

    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    kv_cache_dtype_skip_layers: tuple[int | str, ...] = ()
    block_size: int = 32
    max_model_len: int | None = None
    kv_cache_memory_bytes: int | None = None
    snapshot_memory_share: float = 0.2
    snapshot_interval_tokens: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool = True
    eviction_policy: str = "lru"
    tenants: Mapping[str, TenantShare] = field(default_factory=dict)
    num_threads: int | None = None
    seed: int = 0
    environment: Environment = field(default_factory=Environment.read)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}; choose one of: {', '.join(DTYPES)}.")
        for name in ("max_model_len", "kv_cache_memory_bytes", "num_threads"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}; it must be positive (or None to choose by itself).")
        if not 0 <= self.snapshot_memory_share < 1:
            raise ConfigError(
                f"snapshot_memory_share is {self.snapshot_memory_share}; give at least 0 and less than 1."
            )
        if self.snapshot_interval_tokens is not None and self.snapshot_interval_tokens < 0:
            raise ConfigError(
                f"snapshot_interval_tokens is {self.snapshot_interval_tokens}; it must be positive, 0 for none, or "
                "None to choose by itself."
            )
        check_tenants(self.tenants)
        if not 0 < self.max_num_seqs <= self.max_num_batched_tokens:
            raise ConfigError(
                f"max_num_seqs is {self.max_num_seqs}; it must be positive and at most max_num_batched_tokens "
                f"({self.max_num_batched_tokens}), so that every running sequence can advance in every step."
            )
