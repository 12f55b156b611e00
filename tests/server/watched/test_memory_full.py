"""What a client is told that would rather end than wait for pages, and what is counted."""

from __future__ import annotations

from pagoda import LLM
from server.running import MODEL, running


def test_a_request_that_would_have_to_wait_for_pages_is_answered_at_once() -> None:
    body = {"model": MODEL, "max_tokens": 400, "ignore_eos": True, "temperature": 0}
    prompts = ["The sea was calm.", "The door was open.", "Nobody knew.", "It rained."]
    with LLM(kv_cache_memory_bytes=2 << 20) as llm, running(llm) as server:
        waited = server.post("/v1/completions", {**body, "prompt": prompts})
        refused = server.post("/v1/completions", {**body, "prompt": prompts, "memory_full": "reject"})
        server.wait_until_idle()
        metrics = server.get("/metrics").text
        unknown = server.post("/v1/completions", {**body, "prompt": "x", "memory_full": "nothing"})
    assert waited.status_code == 200
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"]["code"] == "memory_full"
    assert 'pagoda:memory_full_total{action="reject",' in metrics
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "memory_full")
