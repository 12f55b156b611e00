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
    stores, page_nbytes = [*stores], [geometry.page_nbytes for geometry in memory.geometries]
    if not groups:  # pages of nothing tell where prompts part
        groups.append(PageGroup(LEDGER_PAGES, config.block_size, policy, KeepAll(), share, tenants))
        stores.insert(0, NoBytes())
        page_nbytes.append(0)
    if memory.states is not None:
        rule = SnapshotRule(memory.states.interval_tokens, config.block_size)
        groups.append(StateGroup(memory.states.num_slots, policy, rule, share, tenants))
        page_nbytes.append(memory.states.geometry.page_nbytes)
    ttl = config.prefix_cache_ttl_seconds
    return Cache(groups, stores, page_nbytes, clock, policy.lifetime_seconds if ttl is None else ttl)
