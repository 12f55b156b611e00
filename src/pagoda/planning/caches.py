"""The cache that a memory plan describes, over whatever lies behind its pages.

The engine gives pools of bytes and the simulator `NoBytes`; who holds which page is decided by the same code. Knows no
tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pagoda.cache.cache import Cache, NoBytes, PageStore
from pagoda.cache.groups.base import CacheGroup
from pagoda.cache.groups.cross import CrossGroup
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.groups.state import SnapshotRule, StateGroup
from pagoda.config import EngineConfig
from pagoda.layouts.spec import Reach
from pagoda.planning.memory import LEDGER_PAGES, MemoryPlan
from pagoda.registry import lookup


def make_cache(
    memory: MemoryPlan, stores: Sequence[PageStore], config: EngineConfig, clock: Callable[[], float]
) -> Cache:
    """A cache of the groups in `memory`, whose pages lie in `stores`: one for each group, then one for the states."""
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
    page_nbytes = [geometry.page_nbytes for geometry in memory.geometries]
    if not groups:  # pages of nothing tell where prompts part
        groups.append(PageGroup(LEDGER_PAGES, config.block_size, policy, KeepAll(), share, tenants))
        page_nbytes.append(0)
    if memory.states is not None:
        rule = SnapshotRule(memory.states.interval_tokens, config.block_size)
        groups.append(StateGroup(memory.states.num_slots, policy, rule, share, tenants))
        page_nbytes.append(memory.states.geometry.page_nbytes)
    ttl = config.prefix_cache_ttl_seconds
    return Cache(
        groups, cache_stores(memory, stores), page_nbytes, clock, policy.lifetime_seconds if ttl is None else ttl
    )


def cache_stores(memory: MemoryPlan, stores: Sequence[PageStore]) -> list[PageStore]:
    """What lies behind the pages of each group of such a cache."""
    return [*stores] if memory.pools else [NoBytes(), *stores]
