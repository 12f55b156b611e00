"""How the memory budget becomes pages, and how long a sequence may be with them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pagoda.config import DEFAULT_KV_CACHE_NBYTES, DEFAULT_KV_CACHE_SHARE, EngineConfig
from pagoda.engine.page_formats import choose_geometries
from pagoda.errors import ConfigError
from pagoda.formats.page import PageGeometry
from pagoda.machine import available_memory_nbytes
from pagoda.models.model import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryPlan:
    """The geometry of every group, and `num_pages` for each of them: all groups keep all tokens."""

    geometries: tuple[PageGeometry, ...]
    num_pages: int
    max_model_len: int
    limited_by: str
    remedy: str

    @property
    def nbytes_per_token(self) -> float:
        return sum(geometry.nbytes_per_token for geometry in self.geometries)

    @property
    def nbytes(self) -> int:
        return self.num_pages * sum(geometry.page_nbytes for geometry in self.geometries)


def plan_memory(model: Model, config: EngineConfig) -> MemoryPlan:
    """Divide the budget into pages. Raises ConfigError if not even one page fits."""
    geometries = choose_geometries(model, config)
    nbytes = sum(geometry.page_nbytes for geometry in geometries)
    budget = config.kv_cache_memory_bytes or _default_budget()
    num_pages = budget // nbytes
    if num_pages == 0:
        raise ConfigError(f"kv_cache_memory_bytes is {budget}, less than one page ({nbytes} bytes); raise it.")
    capacity = num_pages * config.block_size
    wanted = min(n for n in (config.max_model_len, model.max_model_len, capacity) if n is not None)
    if config.max_model_len is None and wanted == capacity != model.max_model_len:
        logger.warning("The page pool holds %d tokens: sequences end there.", capacity)
    if wanted == capacity:
        limit = ("what the page pool holds", " or raise kv_cache_memory_bytes")
    else:
        limit = ("max_model_len", "" if config.max_model_len is None else " or raise max_model_len")
    return MemoryPlan(geometries, num_pages, wanted, *limit)


def _default_budget() -> int:
    available = available_memory_nbytes()
    if available is None:
        return DEFAULT_KV_CACHE_NBYTES
    return min(DEFAULT_KV_CACHE_NBYTES, int(available * DEFAULT_KV_CACHE_SHARE))
