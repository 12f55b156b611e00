"""What one request cost: measured numbers from its output, and what the cache held while it ran.

Knows outputs and cache statistics; prints nothing by itself. `generate --stats`, `chat --stats` and the demo show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.table import Table

from pagoda.analysis.time import OVERHEADS
from pagoda.cache.holdings.allocator import PageCounts
from pagoda.cache.inspector import CacheStats
from pagoda.cache.report import LoadDecision
from pagoda.outputs import RequestOutput
from pagoda.units import NOT_MEASURED, format_nbytes, format_rate, format_seconds

if TYPE_CHECKING:
    from pagoda.llm import LLM

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class RequestCost:
    """The numbers of one finished request."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_computed_tokens: int
    num_output_tokens: int
    ttft_seconds: float | None
    decode_tokens_per_second: float | None
    num_encoder_tokens: int = 0
    num_cached_encoder_tokens: int = 0
    read_tokens: Mapping[str, int] = field(default_factory=dict)
    load: LoadDecision | None = None

    @classmethod
    def of(cls, output: RequestOutput) -> RequestCost:
        metrics = output.metrics
        return cls(
            num_prompt_tokens=len(output.prompt_token_ids),
            num_cached_tokens=output.num_cached_tokens,
            num_computed_tokens=metrics.num_computed_tokens,
            num_output_tokens=sum(len(completion.token_ids) for completion in output.outputs),
            ttft_seconds=metrics.ttft_seconds,
            decode_tokens_per_second=_decode_rate(output),
            num_encoder_tokens=output.num_encoder_tokens,
            num_cached_encoder_tokens=output.num_cached_encoder_tokens,
            read_tokens=output.cache_report.read_tokens,
            load=output.cache_report.load,
        )

    def rows(self) -> Rows:
        return [
            *self._encoder_rows(),
            ("prompt tokens", f"{self.num_prompt_tokens:,}"),
            ("  served from cache", f"{self.num_cached_tokens:,}"),
            *((f"    from {name}", f"{number:,}") for name, number in self.read_tokens.items() if name != "device"),
            *self._load_rows(),
            ("  computed", f"{self.num_prompt_tokens - self.num_cached_tokens:,}"),
            ("time to first token", format_seconds(self.ttft_seconds)),
            ("output tokens", f"{self.num_output_tokens:,}"),
            ("decode", format_rate(self.decode_tokens_per_second, "tokens")),
        ]

    def _load_rows(self) -> Rows:
        """What was decided on pages in tiers, and from what."""
        load = self.load
        if load is None:
            return []
        expected = f"{format_seconds(load.load_seconds)} to load, {format_seconds(load.compute_seconds)} to compute"
        found = f"{load.num_tokens:,} tokens, {format_nbytes(load.nbytes)}; expected {expected}"
        return [("    in tiers", f"{found}: {'loaded' if load.is_loaded else 'computed'}")]

    def _encoder_rows(self) -> Rows:
        if not self.num_encoder_tokens:
            return []
        return [
            ("encoder tokens", f"{self.num_encoder_tokens:,}"),
            ("  served from cache", f"{self.num_cached_encoder_tokens:,}"),
        ]


class CacheWatch:
    """The cache's statistics as last seen while a request held pages."""

    def __init__(self, llm: LLM, every: int = 16) -> None:
        self._llm = llm
        self._every = every
        self._num_chunks = 0
        self.stats: CacheStats | None = None

    def tick(self) -> None:
        """Call once per chunk; looks at the cache now and then, so as not to slow down what it watches."""
        if self._num_chunks % self._every == 0:
            stats = self._llm.cache_stats()
            self.stats = stats if stats.token_slots_allocated else self.stats
        self._num_chunks += 1

    def rows(self) -> Rows:
        memory = self._llm.engine.memory
        rows = []
        if memory.geometries:
            per_token = f"{format_nbytes(memory.nbytes_per_token)} ({memory.geometries[0].format_name})"
            rows.append(("KV cache per token", per_token))
        if memory.cross_group is not None:
            format_name = memory.geometries[memory.cross_group].format_name
            per_token = f"{format_nbytes(memory.nbytes_per_encoder_token)} ({format_name})"
            rows.append(("  per encoder token", per_token))
        if memory.states:
            rows.append(("recurrent state", f"{format_nbytes(memory.states.geometry.page_nbytes)} for each sequence"))
        if self.stats is None:
            return rows
        if memory.geometries:
            rows.append(("pages used", _use(self.stats.groups[: len(memory.geometries)])))
            rows.append(("memory utilisation", f"{self.stats.utilization:.1%} of the slots in used pages hold a token"))
        if memory.states:
            rows.append(("states used", _use(self.stats.groups[-1:])))
        return rows


def _use(groups: Sequence[PageCounts]) -> str:
    used = sum(group.open + group.in_use for group in groups)
    idle = sum(group.idle for group in groups)
    return f"{used:,} of {sum(group.total for group in groups):,}, {idle:,} more kept for later hits"


def time_rows(output: RequestOutput) -> Rows:
    """Where the time of a request went, and what that means; nothing if nobody measured it."""
    time = output.time
    if time is None or not time.seconds:
        return []
    wall = [
        (f"  {name}", f"{format_seconds(seconds)}, {seconds / time.seconds:.1%}") for name, seconds in time.wall.items()
    ]
    beside = [f"{said} {format_seconds(time.work[name])}" for name, said in OVERHEADS.items() if time.work[name]]
    return [
        ("time in all", format_seconds(time.seconds)),
        *wall,
        ("  beside the model", ", ".join(beside) or NOT_MEASURED),
        ("verdict", "\n".join(output.verdict)),
    ]


def table(rows: Rows) -> Table:
    """Two columns, no frame: reads well in a terminal and in a file."""
    grid = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for row in rows:
        grid.add_row(*row)
    return grid


def _decode_rate(output: RequestOutput) -> float | None:
    """Tokens per second of the first sample, after its first token; None if there was only one."""
    gaps = output.metrics.inter_token_seconds
    return len(gaps) / sum(gaps) if gaps and sum(gaps) > 0 else None
