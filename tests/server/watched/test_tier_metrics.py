"""What came from tiers is counted, in vLLM's names and in ours, and stands in the request log."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pagoda import LLM
from pagoda.cache.residency.break_even import BreakEven
from pagoda.server.watched.request_log import RequestLog
from server.running import MODEL, Running, running

STORY = "The sea was calm and the old captain told again what he had told them every night of the voyage: " * 4


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of how fast this machine computes, so what tiers have is loaded."""
    monkeypatch.setattr(BreakEven, "computed", lambda *_: None)


def ask(server: Running) -> None:
    body = {"model": MODEL, "prompt": STORY, "max_tokens": 2, "temperature": 0}
    server.post("/v1/completions", body)
    server.wait_until_idle()


def counts(server: Running) -> dict[str, float]:
    text = server.get("/metrics").text
    return {name: float(value) for name, value in re.findall(r"^pagoda:(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)}


def test_tokens_from_a_disk_are_counted(tmp_path: Path) -> None:
    log_file = tmp_path / "requests.jsonl"
    with LLM(kv_cache_memory_bytes=32 << 20, kv_disk=str(tmp_path / "pages")) as llm, running(llm) as server:
        log = RequestLog(log_file, server.service.backend.page_names, server.service.backend.pages.page_tokens)
        server.service.log_request = log.add
        ask(server)
        before = counts(server)
        assert llm.engine.residency is not None
        llm.engine.residency.flush()
        llm.reset_prefix_cache()
        ask(server)
        after = counts(server)
        log.close()
    first, second = (json.loads(line) for line in log_file.read_text().splitlines())
    loaded = second["cached_tokens_by_tier"]["disk"]
    assert loaded == second["cached_tokens"] > 32
    assert first["cached_tokens_by_tier"] == {"device": 0}
    assert before["external_prefix_cache_queries_total"] == first["input_length"]
    assert before["external_prefix_cache_hits_total"] == 0
    assert after["external_prefix_cache_hits_total"] == loaded
    assert after["external_prefix_cache_queries_total"] == 2 * first["input_length"]


def test_without_tiers_nothing_is_asked() -> None:
    with LLM(kv_cache_memory_bytes=32 << 20) as llm, running(llm) as server:
        ask(server)
        assert counts(server)["external_prefix_cache_queries_total"] == 0
