"""How the memory budget becomes pages, and how long a sequence may be with them."""

from __future__ import annotations

import logging
from bisect import bisect_right
from dataclasses import dataclass

from pagoda.cache.rule import window_pages
from pagoda.config import DEFAULT_KV_CACHE_NBYTES, DEFAULT_KV_CACHE_SHARE, EngineConfig
from pagoda.engine.page_formats import choose_geometries
from pagoda.errors import ConfigError
from pagoda.formats.page import PageGeometry
from pagoda.machine import available_memory_nbytes
from pagoda.models.model import Model

logger = logging.getLogger(__name__)

# Layers with a window get this share of the pages of layers that keep all tokens: the two run short together where
# sequences are four times as long as the window.
WINDOW_SHARE = 0.25


@dataclass(frozen=True)
class MemoryPlan:
    """The geometry and the number of pages of every group."""

    geometries: tuple[PageGeometry, ...]
    num_pages: tuple[int, ...]
    max_model_len: int
    limited_by: str
    remedy: str

    @property
    def pools(self) -> tuple[tuple[PageGeometry, int], ...]:
        return tuple(zip(self.geometries, self.num_pages, strict=True))

    @property
    def nbytes_per_token(self) -> float:
        """Of a token that all groups keep."""
        return sum(geometry.nbytes_per_token for geometry in self.geometries)

    @property
    def nbytes(self) -> int:
        return sum(num_pages * geometry.page_nbytes for geometry, num_pages in self.pools)


def plan_memory(model: Model, config: EngineConfig) -> MemoryPlan:
    """Divide the budget into pages. Raises ConfigError if it is too small for one sequence."""
    geometries = choose_geometries(model, config)
    budget = config.kv_cache_memory_bytes or _default_budget()
    num_pages = _divide(geometries, budget, config.max_num_batched_tokens)
    capacities = [_capacity(*pool, config.max_num_batched_tokens) for pool in zip(geometries, num_pages, strict=True)]
    capacity = min((n for n in capacities if n is not None), default=None)
    limits = (config.max_model_len, model.max_model_len, capacity)
    wanted = min((n for n in limits if n is not None), default=num_pages[0] * config.block_size)
    if config.max_model_len is None and wanted == capacity != model.max_model_len:
        logger.warning("The page pool holds %d tokens: sequences end there.", capacity)
    if wanted == capacity:
        limit = ("what the page pool holds", " or raise kv_cache_memory_bytes")
    else:
        limit = ("max_model_len", "" if config.max_model_len is None else " or raise max_model_len")
    return MemoryPlan(geometries, num_pages, wanted, *limit)


def _divide(geometries: tuple[PageGeometry, ...], budget: int, step_tokens: int) -> tuple[int, ...]:
    """Pages of each group, all together at most `budget` bytes."""

    def nbytes(num_pages: int) -> int:
        return sum(_group_pages(each, geometries, num_pages, step_tokens) * each.page_nbytes for each in geometries)

    most = budget // min(geometry.page_nbytes for geometry in geometries)
    num_pages = bisect_right(range(most + 1), budget, key=nbytes) - 1
    if num_pages == 0:
        raise ConfigError(f"kv_cache_memory_bytes is {budget}, less than one page ({nbytes(1)} bytes); raise it.")
    return tuple(_group_pages(each, geometries, num_pages, step_tokens) for each in geometries)


def _group_pages(geometry: PageGeometry, geometries: tuple[PageGeometry, ...], num_pages: int, step_tokens: int) -> int:
    """Pages of a group where those that keep all tokens get `num_pages`.

    Fewer with a window, but enough for one sequence.
    """
    if geometry.group.span is None or all(each.group.span is not None for each in geometries):
        return num_pages
    enough = window_pages(geometry.group.span, geometry.page_tokens, step_tokens)
    return min(num_pages, max(enough, int(num_pages * WINDOW_SHARE)))


def _capacity(geometry: PageGeometry, num_pages: int, step_tokens: int) -> int | None:
    """The longest sequence whose tokens fit in a group; None if its windows can move on for ever."""
    span = geometry.group.span
    if span is not None and num_pages >= window_pages(span, geometry.page_tokens, step_tokens):
        return None
    return num_pages * geometry.page_tokens


def _default_budget() -> int:
    available = available_memory_nbytes()
    if available is None:
        return DEFAULT_KV_CACHE_NBYTES
    return min(DEFAULT_KV_CACHE_NBYTES, int(available * DEFAULT_KV_CACHE_SHARE))
