"""Sends OpenTelemetry a span for every job; attributes are named as by vLLM and the conventions."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic, time_ns

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pagoda.server.ground.messages import Job

CONTEXT_HEADERS = ("traceparent", "tracestate")


class Traces:
    """Tells `exporter` of requests that have ended."""

    def __init__(self, exporter: SpanExporter, model_name: str) -> None:
        self._model_name = model_name
        self._provider = TracerProvider(resource=Resource.create({"service.name": "pagoda"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pagoda.server")
        self._contexts = TraceContextTextMapPropagator()

    def count(self, job: Job, headers: Mapping[str, str]) -> None:
        """A job has ended; `headers` may name the span that it belongs to."""
        carrier = {name: headers[name] for name in CONTEXT_HEADERS if name in headers}
        metrics = job.metrics
        offset = time_ns() - int(monotonic() * 1e9)  # from the clock of metrics to the time of day
        span = self._tracer.start_span(
            "llm_request",
            context=self._contexts.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=offset + int(metrics.arrival * 1e9),
        )
        attributes: dict[str, str | float | None] = {
            "gen_ai.request.id": job.job_id,
            "gen_ai.response.model": self._model_name,
            "gen_ai.request.n": job.params.n,
            "gen_ai.request.temperature": job.params.temperature,
            "gen_ai.request.top_p": job.params.top_p,
            "gen_ai.request.max_tokens": job.params.max_tokens,
            "gen_ai.usage.prompt_tokens": len(job.prompt),
            "gen_ai.usage.completion_tokens": job.num_output_tokens,
            "gen_ai.usage.cache_read.input_tokens": job.num_cached_tokens,
            "gen_ai.latency.time_in_queue": metrics.queue_seconds,
            "gen_ai.latency.time_to_first_token": metrics.ttft_seconds,
            "gen_ai.latency.e2e": metrics.e2e_seconds,
        }
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if job.error is not None:
            span.set_status(Status(StatusCode.ERROR, str(job.error)))
        last = metrics.arrival if metrics.last_token is None else metrics.last_token
        span.end(offset + int(last * 1e9))

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()
