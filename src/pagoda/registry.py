"""Every pluggable name and where its answer lives: one line each, imported on first use.

`lookup(kind, name)` returns the object a line names. Nothing is imported before it is asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from pagoda.errors import ConfigError

REGISTRY: dict[str, dict[str, str]] = {
    "layout": {
        "attention": "pagoda.layouts.attention:AttentionLayout",
        "latent": "pagoda.layouts.latent:LatentLayout",
        "cross": "pagoda.layouts.cross:CrossLayout",
    },
    "format": {
        "fp32": "pagoda.formats.plain:FP32",
        "fp16": "pagoda.formats.plain:FP16",
        "bf16": "pagoda.formats.plain:BF16",
        "int8": "pagoda.formats.scaled:INT8",
        "fp8_e4m3": "pagoda.formats.scaled:FP8_E4M3",
        "fp8_e5m2": "pagoda.formats.scaled:FP8_E5M2",
        "int4": "pagoda.formats.rotated:INT4",
        "int4_rotated": "pagoda.formats.rotated:INT4_ROTATED",
        "int4_plain": "pagoda.formats.int4:INT4_PLAIN",
        "k8v4": "pagoda.formats.mixed:K8V4",
    },
    "eviction": {
        "lru": "pagoda.cache.eviction.lru:LRU",
        "lfu": "pagoda.cache.eviction.lfu:LFU",
        "fifo": "pagoda.cache.eviction.fifo:FIFO",
        "s3-fifo": "pagoda.cache.eviction.s3fifo:S3FIFO",
        "sieve": "pagoda.cache.eviction.sieve:Sieve",
        "gdsf": "pagoda.cache.eviction.gdsf:GDSF",
        "ttl": "pagoda.cache.eviction.ttl:TTL",
    },
    "compression": {
        "snapkv": "pagoda.cache.compression.snapkv:SnapKV",
        "pyramidkv": "pagoda.cache.compression.pyramidkv:PyramidKV",
        "tova": "pagoda.cache.compression.tova:TOVA",
        "morphkv": "pagoda.cache.compression.morphkv:MorphKV",
        "h2o": "pagoda.cache.compression.h2o:H2O",
        "expected_attention": "pagoda.cache.compression.expected:ExpectedAttention",
        "kvzip": "pagoda.cache.compression.kvzip:KVzip",
        "streaming": "pagoda.cache.compression.streaming:Streaming",
        "knorm": "pagoda.cache.compression.knorm:Knorm",
        "random": "pagoda.cache.compression.random:RandomTokens",
    },
    "tier": {
        "host": "pagoda.cache.tiers.host:HostTier",
        "disk": "pagoda.cache.tiers.disk.tier:DiskTier",
        "redis": "pagoda.cache.tiers.redis:RedisTier",
        "s3": "pagoda.cache.tiers.objects:ObjectTier",
    },
    "kernels": {
        "native": "pagoda.kernels.native:NativeKernels",
        "reference": "pagoda.kernels.reference:ReferenceKernels",
        "triton": "pagoda.kernels.triton.backend:TritonKernels",
    },
}


@contextmanager
def registered(kind: str, name: str, target: str) -> Iterator[None]:
    """Inside the block `target`, "module:attribute", is registered as `name`; ConfigError if another is."""
    if name in REGISTRY[kind]:
        raise ConfigError(f"There is a {kind} named {name!r} already; choose another name.")
    REGISTRY[kind][name] = target
    try:
        yield
    finally:
        del REGISTRY[kind][name]


def names(kind: str) -> tuple[str, ...]:
    """The names registered for `kind`, in order of preference."""
    return tuple(REGISTRY[kind])


def lookup(kind: str, name: str) -> Any:
    """The object registered as `name`; ConfigError lists the names there are."""
    target = REGISTRY[kind].get(name)
    if target is None:
        raise ConfigError(f"There is no {kind} named {name!r}; choose one of: {', '.join(names(kind))}.")
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
