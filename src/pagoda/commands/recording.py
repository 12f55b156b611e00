"""Records one run of a scenario for `pagoda bench --report`: its requests, and what the cache holds step by step.

Looks at the cache on the engine's thread, so a recorded run is a little slower than those that are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from pagoda.analysis.run_record import CacheSample, PageMap, RequestRecord, ScenarioRecord
from pagoda.cache.holdings.allocator import ShownState
from pagoda.cache.inspector import CacheStats
from pagoda.commands.scenarios import Measurement
from pagoda.layouts.spec import Reach
from pagoda.llm import LLM
from pagoda.outputs import RequestOutput
from pagoda.planning.memory import MemoryPlan

SECONDS_BETWEEN_SAMPLES = 0.005
MOST_CELLS = 4096  # of a page map


class RecordedLLM(LLM):
    """Keeps what it has generated since `outputs` was emptied last."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.outputs: list[RequestOutput] = []

    def generate(self, *arguments: Any, **options: Any) -> list[RequestOutput]:
        outputs = super().generate(*arguments, **options)
        self.outputs += outputs
        return outputs


@dataclass(frozen=True)
class PageKind:
    """Pages of a layer group, or slots of recurrent states."""

    name: str
    page_nbytes: int
    page_tokens: int


def record(
    llm: RecordedLLM, name: str, run: Callable[[], object], measurements: Sequence[Measurement]
) -> ScenarioRecord:
    """Run a scenario once more and tell what came, beside what was measured of it."""
    llm.reset_prefix_cache()
    llm.outputs.clear()
    watch: CacheWatch = llm.loop.call(lambda: CacheWatch(llm)).result()
    stop = llm.loop.observe(watch.look)
    try:
        run()
        llm.loop.call(watch.sample).result()
    finally:
        stop()
    return ScenarioRecord(
        name=name,
        figures=[each.summary for each in measurements],
        requests=[_request(index, output, watch.start) for index, output in enumerate(llm.outputs, start=1)],
        kinds=[kind.name for kind in watch.kinds],
        samples=watch.samples,
        maps=watch.maps,
    )


def _request(number: int, output: RequestOutput, start: float) -> RequestRecord:
    metrics, time = output.metrics, output.time
    assert metrics.ended is not None and time is not None, "it has ended"
    return RequestRecord(
        name=f"request {number}",
        arrival=metrics.arrival - start,
        first_scheduled=None if metrics.first_scheduled is None else metrics.first_scheduled - start,
        first_token=None if metrics.first_token is None else metrics.first_token - start,
        ended=metrics.ended - start,
        time=time,
    )


class CacheWatch:
    """Samples of the cache since now, and the maps of when most was in use. Used on the engine's thread."""

    def __init__(self, llm: LLM) -> None:
        self.start = monotonic()
        self.kinds = page_kinds(llm.engine.memory)
        self.samples: list[CacheSample] = []
        self.maps: list[PageMap] = []
        self._inspector = llm.engine.inspector
        self._main = _main_kind(llm.engine.memory)
        self._before = self._inspector.stats()
        self._next = self._most_in_use = 0.0
        self.sample()

    def look(self) -> None:
        """After each step; takes a sample now and then."""
        if monotonic() >= self._next:
            self.sample()

    def sample(self) -> None:
        now, stats = monotonic(), self._inspector.stats()
        self._next = now + SECONDS_BETWEEN_SAMPLES
        sample = self._sample(now, stats)
        self.samples.append(sample)
        if sum(sample.in_use) >= self._most_in_use:
            self._most_in_use = sum(sample.in_use)
            self.maps = self._page_maps()

    def _sample(self, now: float, stats: CacheStats) -> CacheSample:
        pairs = list(zip(self.kinds, stats.groups, strict=True))
        return CacheSample(
            seconds=now - self.start,
            hit_tokens=stats.hit_tokens - self._before.hit_tokens,
            queried_tokens=stats.queried_tokens - self._before.queried_tokens,
            in_use=tuple((counts.open + counts.in_use) * kind.page_nbytes for kind, counts in pairs),
            idle=tuple(counts.idle * kind.page_nbytes for kind, counts in pairs),
            unfilled=self._unfilled(stats),
        )

    def _unfilled(self, stats: CacheStats) -> tuple[int, ...]:
        """Bytes of rows that no token has yet."""
        rows = stats.token_slots_allocated - stats.tokens_stored
        return tuple(
            round(rows * kind.page_nbytes / kind.page_tokens) if index == self._main else 0
            for index, kind in enumerate(self.kinds)
        )

    def _page_maps(self) -> list[PageMap]:
        return [_page_map(*pair) for pair in zip(self.kinds, self._inspector.page_states(), strict=True)]


def _page_map(kind: PageKind, states: bytes) -> PageMap:
    """Free pages behind all others are counted and not shown."""
    shown = states.rstrip(bytes([ShownState.FREE]))
    stride = -(-len(shown) // MOST_CELLS) or 1
    return PageMap(kind.name, shown[::stride], stride, len(states) - len(shown), kind.page_nbytes, kind.page_tokens)


def page_kinds(memory: MemoryPlan) -> list[PageKind]:
    """In the order of `CacheStats.groups`."""
    kinds = [
        PageKind(f"KV, {each.group.name} ({each.format_name})", each.page_nbytes, each.page_tokens)
        for each in memory.geometries
    ]
    kinds = kinds or [PageKind("tokens", 0, 1)]  # pages of nothing, which tell where prompts part
    if memory.states is not None:
        kinds.append(PageKind("recurrent states", memory.states.geometry.page_nbytes, 1))
    return kinds


def _main_kind(memory: MemoryPlan) -> int:
    """Which kind statistics of stored tokens are of: the first that keeps all tokens of a sequence, if one does."""
    reaches = [geometry.group.reach for geometry in memory.geometries]
    return reaches.index(Reach.FULL) if Reach.FULL in reaches else 0
