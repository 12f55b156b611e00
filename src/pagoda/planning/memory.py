"""How the memory budget becomes pages and slots of recurrent states, and how long a sequence may be with them."""

from __future__ import annotations

import logging
from bisect import bisect_right
from dataclasses import dataclass

from pagoda.cache.groups.rule import window_pages
from pagoda.config import DEFAULT_KV_CACHE_NBYTES, DEFAULT_KV_CACHE_SHARE, EngineConfig
from pagoda.errors import ConfigError
from pagoda.formats.page import PageGeometry
from pagoda.formats.state import StateGeometry
from pagoda.layouts.spec import Reach
from pagoda.planning.facts import MachineFacts, ModelFacts
from pagoda.planning.page_formats import choose_geometries

logger = logging.getLogger(__name__)

# Layers with a window get this share of the pages of layers that keep all tokens: the two run short together where
# sequences are four times as long as the window.
WINDOW_SHARE = 0.25
# The states of running sequences get at most this share of what snapshots leave, where there are pages too.
RUNNING_SHARE = 0.2
MIN_SLOTS = 2  # a state and the snapshot it is copied from
# Snapshots on the way through a long prompt are no closer than this, since a scan starts at each.
MIN_INTERVAL_TOKENS = 256
# Where no layer attends, this many pages without bytes keep the tokens of prompts, to see where they part.
LEDGER_PAGES = 1 << 16
# How far apart they are in models without pages, whose size would tell.
PURE_INTERVAL_TOKENS = 1024


@dataclass(frozen=True)
class StatePlan:
    """The geometry and number of slots for recurrent states, and how many tokens lie between snapshots (None: all)."""

    geometry: StateGeometry
    num_slots: int
    interval_tokens: int | None

    @property
    def nbytes(self) -> int:
        return self.num_slots * self.geometry.page_nbytes


@dataclass(frozen=True)
class MemoryPlan:
    """The geometry and the number of pages of every group, and the `states` of recurrent layers if there are any.

    With `has_summaries` there is room beside the pages to choose which are read.
    """

    geometries: tuple[PageGeometry, ...]
    num_pages: tuple[int, ...]
    states: StatePlan | None
    max_model_len: int
    limited_by: str
    remedy: str
    max_encoder_len: int | None = None
    has_summaries: bool = False

    @property
    def pools(self) -> tuple[tuple[PageGeometry, int], ...]:
        return tuple(zip(self.geometries, self.num_pages, strict=True))

    @property
    def cross_group(self) -> int | None:
        """The group that keeps an encoder's output, if there is one."""
        return next((index for index, each in enumerate(self.geometries) if _is_cross(each)), None)

    @property
    def nbytes_per_token(self) -> float:
        """Of a token that all groups keep which keep those of the sequence."""
        return sum(geometry.nbytes_per_token for geometry in self.geometries if not _is_cross(geometry))

    @property
    def nbytes_per_encoder_token(self) -> float:
        return sum(geometry.nbytes_per_token for geometry in self.geometries if _is_cross(geometry))

    @property
    def nbytes(self) -> int:
        pages = sum(num_pages * (each.page_nbytes + self.summary_nbytes(each)) for each, num_pages in self.pools)
        return pages + (self.states.nbytes if self.states else 0)

    def summary_nbytes(self, geometry: PageGeometry) -> int:
        """What there is beside each page of a group to choose by; 0 if all of them are read."""
        return geometry.summary_nbytes if self.has_summaries else 0


def plan_memory(facts: ModelFacts, machine: MachineFacts, config: EngineConfig) -> MemoryPlan:
    """Divide the budget into pages.

    Raises ConfigError if it is too small for one sequence, or max_model_len is more than the model takes.
    """
    _check_length(facts, config)
    geometries = choose_geometries(facts, config)
    budget = config.kv_cache_memory_bytes or _default_budget(machine)
    states = _plan_states(facts, config, geometries, budget)
    left = budget - (states.nbytes if states else 0)
    ratio = _encoder_ratio(facts)
    has_summaries = config.sparse_attention != "none"
    num_pages = _divide(geometries, left, config.max_num_batched_tokens, ratio, has_summaries)
    pools = tuple(zip(geometries, num_pages, strict=True))
    capacities = [group_capacity(*pool, config.max_num_batched_tokens) for pool in pools if not _is_cross(pool[0])]
    capacities = capacities or [LEDGER_PAGES * config.block_size]
    capacity = min((n for n in capacities if n is not None), default=None)
    limits = (config.max_model_len or facts.max_model_len, capacity)
    wanted = min((n for n in limits if n is not None), default=(*num_pages, LEDGER_PAGES)[0] * config.block_size)
    if geometries and config.max_model_len is None and wanted == capacity != facts.max_model_len:
        logger.warning("The page pool holds %d tokens: sequences end there.", capacity)
    if wanted == capacity:
        limit = ("what the page pool holds", " or raise kv_cache_memory_bytes")
    else:
        is_most = facts.most_model_len is not None and wanted >= facts.most_model_len
        limit = ("max_model_len", "" if is_most else " or raise max_model_len")
    return MemoryPlan(geometries, num_pages, states, wanted, *limit, _max_encoder_len(facts, pools), has_summaries)


def _check_length(facts: ModelFacts, config: EngineConfig) -> None:
    wanted, most = config.max_model_len, facts.most_model_len
    if wanted is not None and most is not None and wanted > most:
        raise ConfigError(f"max_model_len is {wanted} and the model takes at most {most} tokens; lower it.")


def _is_cross(geometry: PageGeometry) -> bool:
    return geometry.group.reach is Reach.ENCODER


def _encoder_ratio(facts: ModelFacts) -> float:
    """How many encoder tokens there may be for one of the decoder: as in the longest request, if that is limited."""
    longest = None if facts.encoder is None else facts.encoder.max_tokens
    if longest is None or facts.max_model_len is None:
        return 1.0
    return max(longest / facts.max_model_len, 1.0)


def _max_encoder_len(facts: ModelFacts, pools: tuple[tuple[PageGeometry, int], ...]) -> int | None:
    """The longest encoder input, None without an encoder. Raises ConfigError if the encoder reads none so short."""
    if facts.encoder is None:
        return None
    capacity = next(num_pages * geometry.page_tokens for geometry, num_pages in pools if _is_cross(geometry))
    if not facts.encoder.reads_text and capacity < (facts.encoder.max_tokens or 0):
        raise ConfigError(
            f"kv_cache_memory_bytes gives {capacity} tokens of room to what the encoder reads, which is always "
            f"{facts.encoder.max_tokens}; raise it."
        )
    return min(capacity, facts.encoder.max_tokens or capacity)


def _divide(
    geometries: tuple[PageGeometry, ...], budget: int, step_tokens: int, encoder_ratio: float, has_summaries: bool
) -> tuple[int, ...]:
    """Pages of each group, all together at most `budget` bytes."""
    if not geometries:
        return ()

    def pages(geometry: PageGeometry, num_pages: int) -> int:
        if _is_cross(geometry):
            return int(num_pages * encoder_ratio)
        return _group_pages(geometry, geometries, num_pages, step_tokens)

    def nbytes(num_pages: int) -> int:
        return sum(
            pages(each, num_pages) * (each.page_nbytes + has_summaries * each.summary_nbytes) for each in geometries
        )

    most = budget // min(geometry.page_nbytes for geometry in geometries)
    num_pages = bisect_right(range(most + 1), budget, key=nbytes) - 1
    if num_pages == 0:
        raise ConfigError(
            f"kv_cache_memory_bytes gives pages {budget}, less than one page ({nbytes(1)} bytes); raise it."
        )
    return tuple(pages(each, num_pages) for each in geometries)


def _plan_states(
    facts: ModelFacts, config: EngineConfig, geometries: tuple[PageGeometry, ...], budget: int
) -> StatePlan | None:
    """Slots for running sequences and for snapshots; all of the budget where there are no pages."""
    if not facts.spec.states:
        return None
    geometry = StateGeometry(facts.spec.states, facts.number_nbytes)
    nbytes = geometry.page_nbytes
    if not geometries:
        num_slots, interval = budget // nbytes, PURE_INTERVAL_TOKENS
    else:
        snapshot_nbytes = int(budget * config.snapshot_memory_share)
        running = min(config.max_num_seqs, int((budget - snapshot_nbytes) * RUNNING_SHARE) // nbytes)
        num_slots = max(running + snapshot_nbytes // nbytes, MIN_SLOTS)
        # A long prompt then spends on snapshots the share of its pages that snapshots get of all memory.
        nbytes_per_token = sum(each.nbytes_per_token for each in geometries)
        interval = max(int(nbytes / max(config.snapshot_memory_share * nbytes_per_token, 1)), MIN_INTERVAL_TOKENS)
    if num_slots < MIN_SLOTS or num_slots * nbytes > budget:
        raise ConfigError(
            f"kv_cache_memory_bytes is {budget}, less than {MIN_SLOTS} recurrent states of {nbytes} bytes; raise it."
        )
    wanted = config.snapshot_interval_tokens
    return StatePlan(geometry, num_slots, interval if wanted is None else wanted or None)


def _group_pages(geometry: PageGeometry, geometries: tuple[PageGeometry, ...], num_pages: int, step_tokens: int) -> int:
    """Pages of a group where those that keep all tokens get `num_pages`.

    Fewer with a window, but enough for one sequence.
    """
    group = geometry.group
    if group.span is None or all(each.group.span is not None for each in geometries):
        return num_pages
    enough = window_pages(group.span, geometry.page_tokens, step_tokens, group.sink_tokens)
    return min(num_pages, max(enough, int(num_pages * WINDOW_SHARE)))


def group_capacity(geometry: PageGeometry, num_pages: int, step_tokens: int) -> int | None:
    """The longest sequence whose tokens fit in a group; None if its windows can move on for ever."""
    span, size, sink_tokens = geometry.group.span, geometry.page_tokens, geometry.group.sink_tokens
    if span is not None and num_pages >= window_pages(span, size, step_tokens, sink_tokens):
        return None
    return num_pages * geometry.page_tokens


def _default_budget(machine: MachineFacts) -> int:
    if machine.pages_nbytes is not None:
        return machine.pages_nbytes
    if machine.available_nbytes is None:
        return DEFAULT_KV_CACHE_NBYTES
    return min(DEFAULT_KV_CACHE_NBYTES, int(machine.available_nbytes * DEFAULT_KV_CACHE_SHARE))
