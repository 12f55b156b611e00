"""The page pools of an engine, as a memory plan divides what there is."""

from __future__ import annotations

from pagoda.cache.pool import PagePool
from pagoda.errors import ConfigError
from pagoda.formats.page import PageGeometry
from pagoda.formats.state import StateGeometry
from pagoda.planning.memory import MemoryPlan


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
