"""The engine's configuration, validated once, and the only place that reads the environment.

Names and meanings are vLLM's where the meaning is the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pagoda.checks import as_float, is_number, is_whole, shown
from pagoda.errors import ConfigError

DTYPES = ("auto", "float32", "float16", "bfloat16")
QUANTIZATIONS = ("none", "int8", "int4")
ACTIVATIONS = ("int8", "full")
DEVICES = ("auto", "cpu", "cuda")
DEFAULT_KV_CACHE_NBYTES = 4 << 30
DEFAULT_KV_CACHE_SHARE = 0.4  # of the memory available at start-up
DEFAULT_LEASE_SHARE = 0.5  # of the pages, where no tenants are named
MAX_NUMBER = 2**62
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0
THREADS_PER_PROCESSOR, LEAST_MOST_THREADS = 4, 64


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What Pagoda takes from environment variables; each has the prefix PAGODA_ and the field's name in capitals."""

    kernels: str = "auto"  # auto, or the name of a backend in the registry
    kernel_isa: str | None = None  # amx, avx512_bf16, avx512, avx2 or baseline
    poison_pages: bool = False  # fill fresh pages with NaN: a read of what was never written shows
    log_level: str = "WARNING"
    cache_dir: str | None = None  # keeps what was measured of models; "" keeps nothing, None is the user's cache folder
    kv_remote_password: str | None = field(default=None, repr=False)  # of the shared store, if its URL has none
    kv_key: str | None = field(default=None, repr=False)  # encrypts pages outside memory: 32 bytes as hex or base64

    @property
    def cache_folder(self) -> Path | None:
        """Where files are kept that can be made again, by the XDG base directory specification."""
        if self.cache_dir is not None:
            return Path(self.cache_dir) if self.cache_dir else None
        given = os.environ.get("XDG_CACHE_HOME")
        try:
            return (Path(given) if given else Path.home() / ".cache") / "pagoda"
        except RuntimeError:
            return None  # a user without a home

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
            if not is_number(share) or not 0 <= as_float(share) <= 1:
                raise ConfigError(f"{name} is {shown(share)}; give a share of the pages between 0 and 1.")
        if not is_number(self.weight) or not MIN_WEIGHT <= as_float(self.weight) <= MAX_WEIGHT:
            raise ConfigError(f"weight is {shown(self.weight)}; give a number from {MIN_WEIGHT} to {MAX_WEIGHT}.")

    @property
    def reserved(self) -> float:
        return max(self.page_quota, self.lease_budget)


CHOICES = {"dtype": DTYPES, "quantization": QUANTIZATIONS, "activations": ACTIVATIONS, "device": DEVICES}
NO_TENANTS: Mapping[str, TenantShare] = {}


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

    quantization: "int8" or "int4" codes the weights when they are loaded, and computes with the codes; "none" does not.
    activations: what coded weights are multiplied by: "int8" (codes of 8 bits), or "full": what there is, by weights
    that are decoded when they are loaded.
    device: "cpu", "cuda" (a GPU), or "auto": a GPU if there is one that can do what is asked for.
    gpu_memory_utilization: how much of a GPU's memory is used, by weights, pages and all others on it.
    kv_cache_dtype: a format, a pair for keys and values ("int8/int4"), or formats by reach ("full=int8,sliding=bf16").
    kv_cache_dtype_skip_layers: layers that keep the model's precision, by number or by reach ("sliding").
    kv_cache_calibration: the text that formats of few bits are fitted to the model with: "auto", "none" or a file.
    block_size: tokens per page, a multiple of 16.
    max_num_batched_tokens: tokens computed in one step; longer prompts are computed in chunks.
    kv_cache_memory_bytes: size of the page pools; None takes 40 % of free memory, at most 4 GiB, or of a GPU what
    gpu_memory_utilization leaves.
    snapshot_memory_share: how much of that is for copies of recurrent states, from which others resume.
    snapshot_interval_tokens: how far apart such copies are in a long prompt; None follows from the share, 0 makes none.
    eviction_policy: which idle pages go first when memory is short.
    prefix_cache_ttl_seconds: what nobody has used for so long is forgotten though there is room; None leaves that to
    the policy, of which ttl takes 300 and the others keep what they have room for.
    miss_memory_bytes: memory for what explains misses, late prompts and pages that went; 0 keeps none.
    kv_host_bytes: memory for pages that leave the page pools; 0 for none.
    kv_disk: a folder for pages, which outlive the process there; kv_disk_bytes: at most so many (None: half of what is
    free, at most 20 GiB).
    kv_remote: the URL of a store that several engines share, redis://... or s3://...; kv_remote_ttl_seconds: for how
    long pages are of use there (None leaves that to the store).
    kv_write: when pages go to disk and store: "seal" (as soon as they are full), "evict" (when they leave the pools),
    "second-hit" (then, if they were of use before) or "auto" (as seal while pages come back, else as second-hit).
    kv_compression: which tokens sequences keep that do not say it themselves: a policy with its budget, such as
    "snapkv:tokens=1024,window=32", or "none".
    sparse_attention: how much of their pages tokens read that are generated and whose request does not say it: "none"
    (all of it), or the pages that matter most to them, as in "quest:tokens=2048"; nothing leaves memory.
    context_full: what becomes of sequences that reach max_model_len and do not say it themselves: "stop",
    "truncate_oldest" (the older half goes) or "streaming:tokens=1024" (the first tokens stay as well).
    memory_full: what becomes of running sequences that do not say it themselves, where others need their pages:
    "preempt" (they wait), "demote" (so they do, and tiers take their pages), "reject" (they end), or a policy as for
    kv_compression (they go on with some of their tokens).
    generation_config: where sampling defaults and rules of generating come from: "auto" (the checkpoint), "vllm"
    (nowhere) or a directory with a generation_config.json.
    deterministic: the same bits for every token, however its prompt is cut, batched or cached.
    tenants: pages reserved by tenant; those not named here share the rest, and may lease only where nobody is named.
    """

    dtype: str = "auto"
    quantization: str = "none"
    activations: str = "int8"
    device: str = "cpu"
    gpu_memory_utilization: float = 0.9
    kv_cache_dtype: str = "auto"
    kv_cache_dtype_skip_layers: tuple[int | str, ...] = ()
    kv_cache_calibration: str = "auto"
    block_size: int = 32
    max_model_len: int | None = None
    kv_cache_memory_bytes: int | None = None
    snapshot_memory_share: float = 0.2
    snapshot_interval_tokens: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool = True
    eviction_policy: str = "lru"
    prefix_cache_ttl_seconds: float | None = None
    miss_memory_bytes: int = 16 << 20
    kv_host_bytes: int = 0
    kv_disk: str | None = None
    kv_disk_bytes: int | None = None
    kv_remote: str | None = None
    kv_remote_ttl_seconds: float | None = None
    kv_write: str = "seal"
    kv_compression: str = "none"
    sparse_attention: str = "none"
    context_full: str = "stop"
    memory_full: str = "preempt"
    generation_config: str = "auto"
    deterministic: bool = False
    tenants: Mapping[str, TenantShare] = field(default_factory=dict)
    num_threads: int | None = None
    seed: int = 0
    environment: Environment = field(default_factory=Environment.read)

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise ConfigError(f"{name} is {shown(value)}; choose one of: {', '.join(known)}.")
        share = self.gpu_memory_utilization
        if not is_number(share) or not 0 < as_float(share) <= 1:
            raise ConfigError(f"gpu_memory_utilization is {shown(share)}; give a share above 0 and at most 1.")
        self._check_types()
        for name in ("max_model_len", "kv_cache_memory_bytes", "num_threads", "kv_disk_bytes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}; it must be positive (or None to choose by itself).")
        if self.num_threads is not None and self.num_threads > most_threads():
            raise ConfigError(f"num_threads is {self.num_threads}; this machine takes at most {most_threads()}.")
        if not 0 <= self.snapshot_memory_share < 1:
            raise ConfigError(
                f"snapshot_memory_share is {self.snapshot_memory_share}; give at least 0 and less than 1."
            )
        if self.snapshot_interval_tokens is not None and self.snapshot_interval_tokens < 0:
            raise ConfigError(
                f"snapshot_interval_tokens is {self.snapshot_interval_tokens}; it must be positive, 0 for none, or "
                "None to choose by itself."
            )
        ttl = self.prefix_cache_ttl_seconds
        if ttl is not None and not (is_number(ttl) and ttl > 0):
            raise ConfigError(f"prefix_cache_ttl_seconds is {shown(ttl)}; give seconds above 0, or None for no limit.")
        self._check_tiers()
        if self.miss_memory_bytes < 0:
            raise ConfigError(f"miss_memory_bytes is {self.miss_memory_bytes}; give bytes, or 0 to remember nothing.")
        if ttl is not None and not self.enable_prefix_caching:
            raise ConfigError("prefix_cache_ttl_seconds is for prefixes that are shared; leave out one of the two.")
        check_tenants(self.tenants)
        if not 0 < self.max_num_seqs <= self.max_num_batched_tokens:
            raise ConfigError(
                f"max_num_seqs is {self.max_num_seqs}; it must be positive and at most max_num_batched_tokens "
                f"({self.max_num_batched_tokens}), so that every running sequence can advance in every step."
            )

    def _check_tiers(self) -> None:
        if self.kv_host_bytes < 0:
            raise ConfigError(f"kv_host_bytes is {self.kv_host_bytes}; give bytes, or 0 for no pages in host memory.")
        if self.kv_write not in WRITE_POLICIES:
            raise ConfigError(f"kv_write is {shown(self.kv_write)}; choose one of: {', '.join(WRITE_POLICIES)}.")
        if self.kv_disk_bytes is not None and self.kv_disk is None:
            raise ConfigError("kv_disk_bytes bounds a folder; name one with kv_disk.")
        ttl = self.kv_remote_ttl_seconds
        if ttl is not None and not (is_number(ttl) and ttl > 0):
            raise ConfigError(f"kv_remote_ttl_seconds is {shown(ttl)}; give seconds above 0, or None for no limit.")
        for name in ("kv_disk", "kv_remote"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ConfigError(f"{name} is {shown(value)}; give a {'folder' if name == 'kv_disk' else 'URL'}.")
        if not self.enable_prefix_caching and (self.kv_host_bytes or self.kv_disk or self.kv_remote):
            raise ConfigError(
                "Tiers keep prefixes that are shared; leave enable_prefix_caching on, or leave tiers out."
            )

    def _check_types(self) -> None:
        for name in WHOLE_NUMBERS:
            value = getattr(self, name)
            if not (is_whole(value) or (value is None and name in MAY_BE_NONE)):
                raise ConfigError(f"{name} is {shown(value)}; it must be a whole number.")
            if value is not None and not -MAX_NUMBER <= value <= MAX_NUMBER:
                raise ConfigError(f"{name} is {shown(value)}; it must be at most {MAX_NUMBER}.")
            object.__setattr__(self, name, None if value is None else int(value))  # numpy's reckon in other ways
        for name, (kind, wanted) in KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} is {shown(getattr(self, name))}; it must be {wanted}.")
        if not is_number(self.snapshot_memory_share):
            raise ConfigError(f"snapshot_memory_share is {shown(self.snapshot_memory_share)}; it must be a number.")
        if not all(is_whole(layer) or isinstance(layer, str) for layer in self.kv_cache_dtype_skip_layers):
            given = shown(self.kv_cache_dtype_skip_layers)
            raise ConfigError(f"kv_cache_dtype_skip_layers is {given}; it must have numbers of layers, or reaches.")
        if not all(isinstance(share, TenantShare) for share in self.tenants.values()):
            raise ConfigError(f"tenants is {shown(self.tenants)}; it must map names to TenantShare(...).")


WHOLE_NUMBERS = (
    *("block_size", "max_model_len", "kv_cache_memory_bytes", "snapshot_interval_tokens", "max_num_seqs"),
    *("max_num_batched_tokens", "num_threads", "seed", "miss_memory_bytes", "kv_host_bytes", "kv_disk_bytes"),
)
MAY_BE_NONE = (*("max_model_len", "kv_cache_memory_bytes", "snapshot_interval_tokens", "num_threads", "kv_disk_bytes"),)
WRITE_POLICIES = ("seal", "evict", "second-hit", "auto")
KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "kv_cache_dtype": (str, "the name of a format"),
    "kv_cache_dtype_skip_layers": ((tuple, list), "a list of layers"),
    "kv_cache_calibration": (str, "auto, none or a file"),
    "enable_prefix_caching": (bool, "True or False"),
    "eviction_policy": (str, "the name of a policy"),
    "kv_compression": (str, "a policy with its budget, or none"),
    "sparse_attention": (str, "quest with its budget, or none"),
    "context_full": (str, "stop, truncate_oldest or streaming with a budget"),
    "memory_full": (str, "preempt, demote, reject or a policy with its budget"),
    "generation_config": (str, "auto, vllm or a directory"),
    "deterministic": (bool, "True or False"),
    "kv_write": (str, "seal, evict, second-hit or auto"),
    "tenants": (Mapping, "a dictionary"),
    "environment": (Environment, "an Environment"),
}


def most_threads() -> int:
    """More than processors there are serve nobody, and very many end the process."""
    return max(LEAST_MOST_THREADS, THREADS_PER_PROCESSOR * (os.cpu_count() or 1))


def engine_config(**options: Any) -> EngineConfig:
    """A configuration of options by name. Raises ConfigError for a name that there is none of."""
    known = [each.name for each in fields(EngineConfig)]
    for name in options:
        if name not in known:
            similar = get_close_matches(name, known, n=1)
            hint = f"did you mean {similar[0]}?" if similar else f"there are: {', '.join(known)}."
            raise ConfigError(f"There is no option {name!r}; {hint}")
    return EngineConfig(**options)
