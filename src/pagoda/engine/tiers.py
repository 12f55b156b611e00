"""The tiers of an engine, as its configuration asks for them, and what moves pages between them and its pool."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from pagoda.cache.cache import Cache, PageStore
from pagoda.cache.prefix.names import PageNames
from pagoda.cache.residency.admission import WritePolicy
from pagoda.cache.residency.labels import Labels, Layout, tenant_digest
from pagoda.cache.residency.movers import ThreadMovers
from pagoda.cache.residency.residency import Residency
from pagoda.cache.tiers.base import Tier, TierSettings
from pagoda.cache.tiers.cipher import AesGcmCipher
from pagoda.cache.tiers.disk.parts import make_room, part_of
from pagoda.cache.tiers.guarded import GuardedTier
from pagoda.cache.tiers.partitioned import PartitionedTier
from pagoda.cache.tiers.record import Kind
from pagoda.config import EngineConfig, TenantShare
from pagoda.errors import ConfigError
from pagoda.registry import lookup, names

# What a disk tier takes if nobody says: so much of what is free, and no more than so many bytes.
FREE_SHARE = 0.5
MOST_DISK_NBYTES = 20 << 30
# What tenants without a quota have at least, unless that is more than an even share.
LEAST_REST_NBYTES = 1 << 20


def open_tiers(config: EngineConfig) -> list[Tier]:
    """Those that are asked for, the fastest first. Raises ConfigError or TierError for one that cannot be used."""
    wanted: list[tuple[str, TierSettings]] = []
    if config.kv_host_bytes:
        wanted.append(("host", TierSettings(limit_nbytes=config.kv_host_bytes)))
    if config.kv_disk is not None:
        limit = config.kv_disk_bytes or _default_disk_nbytes(Path(config.kv_disk))
        wanted.append(("disk", TierSettings(config.kv_disk, limit)))
    if config.kv_remote is not None:
        ttl, password = config.kv_remote_ttl_seconds, config.environment.kv_remote_password
        settings = TierSettings(config.kv_remote, ttl_seconds=ttl, password=password)
        wanted.append((_remote_kind(config.kv_remote), settings))
    tiers: list[Tier] = []
    try:
        for name, settings in wanted:
            tiers.append(_open_parts(name, settings, config.tenants))
    except BaseException:
        for tier in tiers:
            tier.close()
        raise
    return tiers


def _open_parts(name: str, settings: TierSettings, tenants: Mapping[str, TenantShare]) -> Tier:
    """A tier, of which each tenant that has a quota of pages has a part of its own, if it has a limit to be divided."""
    quotas = {tenant: share.page_quota for tenant, share in tenants.items() if share.page_quota}
    limit = settings.limit_nbytes
    if limit is not None and settings.where:
        limit -= _left_by_others(settings.where, quotas, limit)
        settings = replace(settings, limit_nbytes=limit)
    if limit is None or not quotas:
        return _open(name, settings)
    promised = sum(quotas.values())
    # All others have something, which those with quotas give up, so that parts are no more than the whole.
    rest_nbytes = max(int(limit * (1 - promised)), min(LEAST_REST_NBYTES, limit // (len(quotas) + 1)))
    share_of_own = min(1.0, (limit - rest_nbytes) / (limit * promised))
    rest = _open(name, replace(settings, limit_nbytes=rest_nbytes))
    own: dict[bytes, Tier] = {}
    try:
        for tenant, quota in quotas.items():
            digest = tenant_digest(tenant)
            where = str(part_of(Path(settings.where), digest)) if settings.where else ""
            own[digest] = _open(name, replace(settings, where=where, limit_nbytes=int(limit * quota * share_of_own)))
    except BaseException:
        for tier in (rest, *own.values()):
            tier.close()
        raise
    return PartitionedTier(own, rest)


def _left_by_others(where: str, quotas: Iterable[str], limit_nbytes: int) -> int:
    """Bytes in the parts of a folder whose tenants have no quota now."""
    try:
        return make_room(Path(where), {tenant_digest(tenant) for tenant in quotas}, limit_nbytes)
    except OSError:
        return 0  # whoever opens the folder says what is wrong with it


def make_residency(
    cache: Cache, stores: Sequence[PageStore], labels: Labels, tiers: Sequence[Tier], config: EngineConfig
) -> Residency:
    """What moves pages between `cache` and `tiers`."""
    key = config.environment.kv_key
    movers = ThreadMovers(None if key is None else AesGcmCipher.from_text(key))
    return Residency(cache, stores, labels, tiers, WritePolicy(config.kv_write), movers)


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
