"""Counts what Prometheus reads, with vLLM's names, labels and meanings where the meaning is the same, under our prefix.

What jobs have cost is counted when they end, on the event loop's thread. What the cache holds is asked at each scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pagoda.cache.compression.choice import MemoryFull
from pagoda.cache.inspector import CacheStats
from pagoda.cache.residency.residency import TierReport
from pagoda.engine.request import FinishReason
from pagoda.machine import resident_memory_nbytes
from pagoda.server.answered.answer import Answer
from pagoda.server.backend.facts import PageFacts
from pagoda.server.ground.messages import Job

PREFIX = "pagoda:"
LABELS = ("model_name", "engine")
LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
PHASE_BUCKETS = (0.0001, 0.001, 0.01, 0.1, 1, 10, 100)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)
LENGTH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

# Of these the meaning is vLLM's: with `metrics_compat` they are there under its prefix too.
SHARED = frozenset(
    (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "cache_config_info",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "external_prefix_cache_queries",
        "external_prefix_cache_hits",
        "prompt_tokens",
        "generation_tokens",
        "prompt_tokens_cached",
        "prompt_tokens_by_source",
        "prompt_tokens_cached_by_source",
        "num_preemptions",
        "request_success",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_kv_computed_tokens",
        "request_prompt_tokens",
        "request_generation_tokens",
    )
)


class Metrics:
    """Counters and histograms of one backend."""

    def __init__(self, model_name: str, pages: PageFacts, compat: str | None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._labels = (model_name, "0")
        self._compat = compat
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self._generated_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._cached_tokens = self._counter("prompt_tokens_cached", "Tokens of prompts that the cache held.")
        self._has_tiers = pages.have_tiers
        self._external_queries = self._counter("external_prefix_cache_queries", "Tokens that tiers were asked for.")
        self._external_hits = self._counter("external_prefix_cache_hits", "Tokens that were loaded from tiers.")
        self._by_source = self._counter(
            "prompt_tokens_by_source", "Tokens of prompts by where they came from.", "source"
        )
        self._cached_by_source = self._counter(
            "prompt_tokens_cached_by_source", "Cached tokens of prompts by tier.", "source"
        )
        self._preemptions = self._counter("num_preemptions", "Requests sent back to wait for want of pages.")
        self._gave_way = self._counter(
            "memory_full", "What became of running requests when pages were short, by memory_full.", "action"
        )
        for action in (MemoryFull.COMPRESS, MemoryFull.DEMOTE, MemoryFull.REJECT):  # known before the first
            self._of(self._gave_way, action)
        self._successes = self._counter("request_success", "Requests that ended, by reason.", "finished_reason")
        self._errors = self._counter(
            "request_errors",
            "Requests that were refused or failed, by HTTP status; 499 is a client that left.",
            "status",
        )
        self._ttft = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", LATENCY_BUCKETS)
        self._inter_token = self._histogram("inter_token_latency_seconds", "Between two tokens.", TOKEN_BUCKETS)
        self._e2e = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.", LATENCY_BUCKETS)
        self._queue = self._histogram("request_queue_time_seconds", "From arrival to the first step.", LATENCY_BUCKETS)
        self._phases = self._histogram(
            "request_phase_seconds",
            "What a request cost in each phase; of a step that several share, its part.",
            PHASE_BUCKETS,
            "phase",
        )
        self._computed = self._histogram(
            "request_prefill_kv_computed_tokens", "Tokens of a prompt that were computed.", LENGTH_BUCKETS
        )
        self._prompt_length = self._histogram("request_prompt_tokens", "Tokens of a prompt.", LENGTH_BUCKETS)
        self._output_length = self._histogram("request_generation_tokens", "Tokens of an answer.", LENGTH_BUCKETS)
        self._state = _CacheState(self._labels, pages)
        self.registry.register(self._state)

    def count(self, answer: Answer) -> None:
        """An answer has ended."""
        for job in answer.jobs:
            self._count(job, failed=answer.error is not None)

    def count_error(self, status: int) -> None:
        """A request was refused or failed."""
        self._of(self._errors, str(status)).inc()

    def render(self, stats: CacheStats, running: int, waiting: int) -> bytes:
        """All of it, in Prometheus' text format."""
        self._state.set(stats, running, waiting)
        text = generate_latest(self.registry)
        return text if self._compat is None else text + b"".join(_aliases(text, f"{self._compat}:".encode()))

    def _count(self, job: Job, failed: bool) -> None:
        metrics, cached = job.metrics, job.num_cached_tokens or 0
        if job.num_cached_tokens is not None:
            computed = len(job.prompt) - cached
            self._of(self._prompt_tokens).inc(len(job.prompt))
            self._of(self._cached_tokens).inc(cached)
            loaded = {} if job.cache_report is None else dict(job.cache_report.read_tokens)
            loaded.pop("device", None)
            external = sum(loaded.values())
            self._of(self._external_queries).inc(computed + external if self._has_tiers else 0)
            self._of(self._external_hits).inc(external)
            self._of(self._by_source, "local_cache_hit").inc(cached - external)
            self._of(self._by_source, "external_kv_transfer").inc(external)
            self._of(self._by_source, "local_compute").inc(computed)
            self._of(self._cached_by_source, "device").inc(cached - external)
            for tier, num_tokens in loaded.items():
                self._of(self._cached_by_source, tier).inc(num_tokens)
            self._of(self._computed).observe(computed)
            self._of(self._prompt_length).observe(len(job.prompt))
        self._of(self._generated_tokens).inc(job.num_output_tokens)
        self._of(self._output_length).observe(job.num_output_tokens)
        self._of(self._preemptions).inc(metrics.num_preemptions)
        for action, count in metrics.gave_way.items():
            self._of(self._gave_way, action).inc(count)
        for histogram, seconds in (
            (self._ttft, metrics.ttft_seconds),
            (self._queue, metrics.queue_seconds),
            (self._e2e, metrics.e2e_seconds),
        ):
            if seconds is not None:
                self._of(histogram).observe(seconds)
        for phase, seconds in asdict(metrics.phases).items():
            self._of(self._phases, phase).observe(seconds)
        inter_token = self._of(self._inter_token)
        for seconds in metrics.inter_token_seconds:
            inter_token.observe(seconds)
        for known in job.finish_reasons:
            reason = FinishReason.ABORT if failed else known or FinishReason.ABORT
            self._of(self._successes, FinishReason.ERROR if job.error else reason).inc()

    def _of(self, metric: Any, *labels: str) -> Any:
        return metric.labels(*self._labels, *labels)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, help, (*LABELS, *labels), registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        histogram = Histogram(PREFIX + name, help, (*LABELS, *labels), registry=self.registry, buckets=buckets)
        if not labels:  # it is there before anything is observed
            histogram.labels(*self._labels)
        return histogram


TierValue = Callable[[TierReport], float]
TIER_GAUGES: tuple[tuple[str, str, TierValue], ...] = (
    ("up", "1 while a tier is used, 0 while it is off or only read.", lambda tier: tier.stats.fault is None),
    ("records", "Records of pages that a tier holds.", lambda tier: tier.stats.num_records),
    ("bytes", "What they take there.", lambda tier: tier.stats.nbytes),
    (
        "limit_bytes",
        "What they may take there; 0 where the tier has no limit.",
        lambda tier: tier.stats.limit_nbytes or 0,
    ),
    ("waiting_bytes", "What waits to be written.", lambda tier: tier.staged_nbytes),
)
TIER_COUNTERS: tuple[tuple[str, str, TierValue], ...] = (
    ("loaded_records", "Records that were loaded into pages.", lambda tier: tier.num_loaded),
    ("loaded_bytes", "Bytes of these.", lambda tier: tier.loaded_nbytes),
    ("written_bytes", "Bytes written.", lambda tier: tier.stats.written_nbytes),
    ("dropped_records", "Records given up to make room.", lambda tier: tier.stats.num_dropped),
    ("refused_records", "Records that were not taken.", lambda tier: tier.stats.num_refused),
    ("skipped_records", "Records not written, since too much waited.", lambda tier: tier.num_skipped),
    ("damaged_records", "Records that were not what they said.", lambda tier: tier.stats.num_damaged),
    ("errors", "Calls that failed.", lambda tier: tier.stats.num_errors),
)


class _CacheState(Collector):
    """What is true at the moment of a scrape, and what the cache has counted itself."""

    def __init__(self, labels: tuple[str, ...], facts: PageFacts) -> None:
        self._labels = labels
        self._facts = facts
        self._stats: CacheStats | None = None
        self._requests = (0, 0)

    def set(self, stats: CacheStats, running: int, waiting: int) -> None:
        self._stats, self._requests = stats, (running, waiting)

    def collect(self) -> Iterator[Metric]:
        stats = self._stats
        if stats is None:
            return
        running, waiting = self._requests
        counts = [group for group in stats.groups if group.total]
        used = max(((each.open + each.in_transit + each.in_use) / each.total for each in counts), default=0.0)
        yield self._gauge("num_requests_running", "Requests that are being computed.", running)
        yield self._gauge("num_requests_waiting", "Requests that wait to be computed.", waiting)
        yield self._gauge("kv_cache_usage_perc", "Share of the pages in use, from 0 to 1.", used)
        yield self._gauge("kv_cache_memory_bytes", "Memory of the page pools.", self._facts.nbytes)
        yield self._gauge("miss_memory_bytes", "Memory that explains misses.", stats.miss_memory_nbytes)
        yield self._gauge("process_resident_memory_bytes", "Memory of the process.", resident_memory_nbytes())
        yield self._counter("prefix_cache_queries", "Tokens looked up in the cache.", stats.queried_tokens)
        yield self._counter("prefix_cache_hits", "Tokens found in the cache.", stats.hit_tokens)
        yield self._gauge("kv_leases", "Leases in force.", stats.num_leases)
        text = "Tokens of running sequences that compression has left out of the cache."
        yield self._gauge("kv_omitted_tokens", text, stats.omitted_tokens)
        text = "Pages of what prefixes were compressed to, in use or not."
        yield self._gauge("kv_compressed_prefix_pages", text, stats.compacted_pages)
        text = "Sequences that began with what a prefix was compressed to."
        yield self._counter("kv_compressed_prefix_hits", text, stats.compacted_hits)
        text = "Pages that tokens have read which read their pages in part, in a layer that chooses."
        yield self._counter("kv_sparse_read_pages", text, stats.read_pages)
        text = "Pages that these have left unread."
        yield self._counter("kv_sparse_skipped_pages", text, stats.skipped_pages)
        if stats.format_loss is not None:
            yield self._gauge("kv_format_loss", "What the format of pages should cost, 1 = all.", stats.format_loss)
        yield self._counter(
            "revoked_leases", "Leases ended because their own tenant needed the pages.", stats.revoked_leases
        )
        yield self._evictions(stats)
        yield self._pages(stats)
        yield from self._tiers(stats)
        yield self._info()
        yield self._kernels()

    def _pages(self, stats: CacheStats) -> Metric:
        names = (*LABELS, "group", "format", "state")
        family = GaugeMetricFamily(f"{PREFIX}kv_pages", "Pages of a layer group, by state.", labels=names)
        for kind, counts in zip(self._facts.kinds, stats.groups, strict=True):
            for state, number in (
                ("free", counts.free),
                ("open", counts.open),
                ("in_transit", counts.in_transit),
                ("in_use", counts.in_use),
                ("idle", counts.idle - counts.leased),
                ("leased", counts.leased),
            ):
                family.add_metric((*self._labels, kind.name, kind.format_name, state), number)
        return family

    def _tiers(self, stats: CacheStats) -> Iterator[Metric]:
        names = (*LABELS, "tier")
        for name, help, value in TIER_GAUGES:
            gauge = GaugeMetricFamily(f"{PREFIX}kv_tier_{name}", help, labels=names)
            for tier in stats.tiers:
                gauge.add_metric((*self._labels, tier.name), value(tier))
            yield gauge
        for name, help, value in TIER_COUNTERS:
            counter = CounterMetricFamily(f"{PREFIX}kv_tier_{name}", help, labels=names)
            for tier in stats.tiers:
                counter.add_metric((*self._labels, tier.name), value(tier))
            yield counter

    def _evictions(self, stats: CacheStats) -> Metric:
        family = CounterMetricFamily(
            f"{PREFIX}evicted_pages", "Pages forgotten, by reason.", labels=(*LABELS, "reason")
        )
        reasons = {
            "capacity": stats.evicted_pages,
            "reset": stats.reset_pages,
            "doubt": stats.doubted_pages,
            "expired": stats.expired_pages,
        }
        for reason, count in reasons.items():
            family.add_metric((*self._labels, reason), count)
        return family

    def _info(self) -> Metric:
        facts = self._facts
        names = (*LABELS, "block_size", "num_gpu_blocks", "cache_dtype")
        family = GaugeMetricFamily(f"{PREFIX}cache_config_info", "How the cache is set up.", labels=names)
        size, count = str(facts.page_tokens), str(sum(facts.num_pages))
        family.add_metric((*self._labels, size, count, ",".join(facts.formats)), 1)
        return family

    def _kernels(self) -> Metric:
        names = (*LABELS, "group", "kernels", "obstacle")
        family = GaugeMetricFamily(
            f"{PREFIX}attention_kernels_info", "What layer groups attend with, and why not with better.", labels=names
        )
        for each in self._facts.attention:
            family.add_metric((*self._labels, each.group, each.kernels, each.obstacle), 1)
        return family

    def _gauge(self, name: str, help: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, help, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _counter(self, name: str, help: str, value: float) -> Metric:
        family = CounterMetricFamily(PREFIX + name, help, labels=LABELS)
        family.add_metric(self._labels, value)
        return family


def _aliases(text: bytes, prefix: bytes) -> Iterator[bytes]:
    """The lines about metrics that another engine has too, under its prefix."""
    ours = PREFIX.encode()
    for line in text.splitlines(keepends=True):
        words = line.split(b" ", 3)
        name = words[2] if line.startswith(b"#") else line.split(b"{", 1)[0]
        base = name.decode().removeprefix(PREFIX)
        for suffix in ("_total", "_bucket", "_sum", "_count", "_created", "_info"):
            if base not in SHARED:
                base = base.removesuffix(suffix)
        if base in SHARED:
            yield line.replace(ours, prefix, 1)
