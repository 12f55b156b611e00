"""What a request tells of its time, ended or not: the numbers that verdicts are made of."""

from __future__ import annotations

from dataclasses import asdict

from pagoda.analysis.time import RequestTime
from pagoda.cache.compression.choice import MemoryFull
from pagoda.cache.report import MissCause
from pagoda.engine.request import Request
from pagoda.planning.decoding import DecodeReads


def time_of(request: Request) -> RequestTime:
    """As of now."""
    metrics = request.metrics
    samples = request.sequences
    return RequestTime(
        num_prompt_tokens=len(request.prompt),
        num_cached_tokens=request.num_cached_tokens or 0,
        num_output_tokens=sum(sample.num_output_tokens for sample in samples),
        wall=asdict(metrics.wall()),
        work=asdict(metrics.phases),
        ttft_seconds=metrics.ttft_seconds,
        ending=_ending(request),
        preparing_seconds=0.0 if metrics.added is None else metrics.added - metrics.arrival,
        mixed_seconds=metrics.mixed_step_seconds,
        num_ahead=metrics.num_ahead,
        num_preemptions=metrics.num_preemptions,
        num_recomputed_tokens=metrics.num_recomputed_tokens,
        num_shrunk=metrics.gave_way[MemoryFull.COMPRESS],
        reads=_reads(request),
        cause=MissCause.UNKNOWN if request.cache_report is None else request.cache_report.cause,
        read_tokens={} if request.cache_report is None else request.cache_report.read_tokens,
        num_encoder_tokens=request.namespace.num_encoder_tokens,
        num_cached_encoder_tokens=request.num_cached_encoder_tokens,
    )


def _ending(request: Request) -> str | None:
    if request.error is not None:
        return "error"
    return str(request.sequences[0].finish_reason) if request.sequences and request.is_finished else None


def _reads(request: Request) -> DecodeReads | None:
    """What its decode steps have read for a token, on average; None before there are any."""
    costs, metrics = request.decode_costs, request.metrics
    if costs is None or not metrics.num_decode_rows:
        return None
    generated = sum(sample.num_output_tokens for sample in request.sequences) / len(request.sequences)
    context = len(request.prompt) + generated / 2
    return costs.reads(context, metrics.mean_batch_rows, request.namespace.num_encoder_tokens)
