"""The tiers of an engine, as its configuration asks for them, and what moves pages between them and its pool."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pagoda.cache.cache import Cache, PageStore
from pagoda.cache.prefix.names import PageNames
from pagoda.cache.residency.demotion import DemotionRules, WritePolicy
from pagoda.cache.residency.labels import Labels, Layout
from pagoda.cache.residency.residency import Residency
from pagoda.cache.tiers.base import Tier, TierSettings
from pagoda.cache.tiers.cipher import AesGcmCipher
from pagoda.cache.tiers.guarded import GuardedTier
from pagoda.cache.tiers.record import Kind
from pagoda.config import EngineConfig
from pagoda.errors import ConfigError
from pagoda.registry import lookup, names

# What a disk tier takes if nobody says: so much of what is free, and no more than so many bytes.
FREE_SHARE = 0.5
MOST_DISK_NBYTES = 20 << 30


def open_tiers(config: EngineConfig) -> list[Tier]:
    """Those that are asked for, the fastest first. Raises ConfigError or TierError for one that cannot be used."""
    wanted: list[tuple[str, TierSettings]] = []
    if config.kv_host_bytes:
        wanted.append(("host", TierSettings(limit_nbytes=config.kv_host_bytes)))
    if config.kv_disk is not None:
        limit = config.kv_disk_bytes or _default_disk_nbytes(Path(config.kv_disk))
        wanted.append(("disk", TierSettings(config.kv_disk, limit)))
    if config.kv_remote is not None:
        ttl = config.kv_remote_ttl_seconds
        wanted.append((_remote_kind(config.kv_remote), TierSettings(config.kv_remote, ttl_seconds=ttl)))
    tiers: list[Tier] = []
    try:
        for name, settings in wanted:
            tiers.append(_open(name, settings))
    except BaseException:
        for tier in tiers:
            tier.close()
        raise
    return tiers


def make_residency(
    cache: Cache, stores: Sequence[PageStore], labels: Labels, tiers: Sequence[Tier], config: EngineConfig
) -> Residency:
    """What moves pages between `cache` and `tiers`."""
    key = config.environment.kv_key
    rules = DemotionRules(WritePolicy(config.kv_write), None if key is None else AesGcmCipher.from_text(key))
    return Residency(cache, stores, labels, tiers, rules)


def labels_of(cache: Cache, page_names: PageNames) -> Labels:
    """What the pages of `cache` are called outside of the process."""
    kinds = tuple(_kind_of(group.prefixes is not None, group.snapshots is not None) for group in cache.groups)
    return Labels(page_names, Layout(kinds, tuple(group.page_tokens for group in cache.groups)))


def _open(name: str, settings: TierSettings) -> Tier:
    """A tier that raises nothing. Host memory cannot hang, so nothing stands before it."""
    kind: type[Tier] = lookup("tier", name)
    return kind.open(settings) if name == "host" else GuardedTier(_shown_name(name), lambda: kind.open(settings))


def _kind_of(has_prefixes: bool, has_snapshots: bool) -> Kind:
    if has_prefixes:
        return Kind.PAGE
    return Kind.STATE if has_snapshots else Kind.ENCODER


def _remote_kind(url: str) -> str:
    """Which tier a URL is of."""
    scheme = urlsplit(url).scheme
    kind = {"rediss": "redis", "unix": "redis"}.get(scheme, scheme)
    if kind not in names("tier") or kind in ("host", "disk"):
        raise ConfigError(f"kv_remote is {url!r}; give a URL such as redis://host:6379/0 or s3://bucket/prefix.")
    return kind


def _default_disk_nbytes(folder: Path) -> int:
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return min(int(shutil.disk_usage(existing).free * FREE_SHARE), MOST_DISK_NBYTES)


def _shown_name(name: str) -> str:
    """What people are told."""
    return name if name == "disk" else "remote"
