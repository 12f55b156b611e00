"""The metrics say what each layer group attends with, and why not with the backend's kernels."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from pagoda import LLM
from pagoda.registry import registered
from server.running import running


def test_what_layer_groups_attend_with() -> None:
    with (
        registered("format", "toy", "toys:TOY_FORMAT"),
        LLM(kv_cache_dtype="toy", kv_cache_memory_bytes=8 << 20) as llm,
        running(llm) as server,
    ):
        families = {each.name: each for each in text_string_to_metric_families(server.get("/metrics").text)}
    (sample,) = families["pagoda:attention_kernels_info"].samples
    said = {name: sample.labels[name] for name in ("group", "kernels", "obstacle")}
    assert said == {
        "group": "full",
        "kernels": "reference (plain torch)",
        "obstacle": "they do not read toy pages",
    }
