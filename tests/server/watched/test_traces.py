"""Spans of requests, as OpenTelemetry gets them."""

from __future__ import annotations

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pagoda import LLM
from pagoda.server.watched.traces import Traces
from server.running import MODEL, running

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_request_is_a_span_of_its_callers_trace(llm: LLM) -> None:
    llm.reset_prefix_cache()
    exporter = InMemorySpanExporter()
    traces = Traces(exporter, MODEL)
    with running(llm) as server:
        server.service.on_end = traces.count
        body = {"model": MODEL, "prompt": "The sea was calm and", "max_tokens": 3, "ignore_eos": True}
        usage = server.post("/v1/completions", body, headers={"traceparent": PARENT}).json()["usage"]
        server.post("/v1/completions", body)
    traces.close()
    first, second = exporter.get_finished_spans()
    assert f"{first.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{first.parent.span_id:016x}" == PARENT.split("-")[2]
    assert second.parent is None
    assert first.attributes["gen_ai.usage.prompt_tokens"] == usage["prompt_tokens"]
    assert first.attributes["gen_ai.usage.completion_tokens"] == 3
    assert second.attributes["gen_ai.usage.cache_read.input_tokens"] == usage["prompt_tokens"] - 1
    assert first.end_time - first.start_time >= first.attributes["gen_ai.latency.time_to_first_token"] * 1e9
