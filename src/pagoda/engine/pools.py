"""The page pools of an engine, and the cache over them, as a memory plan divides what there is."""

from __future__ import annotations

from collections.abc import Callable

from pagoda.cache.cache import Cache, NoBytes, PageStore
from pagoda.cache.groups.base import CacheGroup
from pagoda.cache.groups.cross import CrossGroup
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.groups.state import SnapshotRule, StateGroup
from pagoda.cache.pool import PagePool
from pagoda.config import EngineConfig
from pagoda.errors import ConfigError
from pagoda.formats.page import PageGeometry
from pagoda.formats.state import StateGeometry
from pagoda.layouts.spec import Reach
from pagoda.planning.memory import LEDGER_PAGES, MemoryPlan
from pagoda.registry import lookup


def make_pools(memory: MemoryPlan, poison: bool) -> list[PagePool]:
    """A pool for every group of layers that attend, then one for recurrent states."""
    wanted: list[tuple[PageGeometry | StateGeometry, int]] = [*memory.pools]
    if memory.states is not None:
        wanted.append((memory.states.geometry, memory.states.num_slots))
    try:
        return [PagePool(geometry, num_pages, poison) for geometry, num_pages in wanted]
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigError(
            f"This machine has no room for page pools of {memory.nbytes} bytes ({error}); lower kv_cache_memory_bytes."
        ) from error


def make_cache(memory: MemoryPlan, pools: list[PagePool], config: EngineConfig, clock: Callable[[], float]) -> Cache:
    policy, share, tenants = (
        lookup("eviction", config.eviction_policy)(),
        config.enable_prefix_caching,
        config.tenants,
    )
    groups: list[CacheGroup] = [
        CrossGroup(num_pages, geometry.page_tokens, policy, share, tenants)
        if geometry.group.reach is Reach.ENCODER
        else PageGroup(num_pages, geometry.page_tokens, policy, geometry.group, share, tenants)
        for geometry, num_pages in memory.pools
    ]
    stores: list[PageStore] = [*pools]
    page_nbytes = [pool.geometry.page_nbytes for pool in pools]
    if not groups:  # pages of nothing tell where prompts part
        groups.append(PageGroup(LEDGER_PAGES, config.block_size, policy, KeepAll(), share, tenants))
        stores.insert(0, NoBytes())
        page_nbytes.insert(0, 0)
    if memory.states is not None:
        rule = SnapshotRule(memory.states.interval_tokens, config.block_size)
        groups.append(StateGroup(memory.states.num_slots, policy, rule, share, tenants))
    ttl = config.prefix_cache_ttl_seconds
    return Cache(groups, stores, page_nbytes, clock, policy.lifetime_seconds if ttl is None else ttl)
