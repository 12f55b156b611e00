"""Running the server: keys, health, metrics, back-pressure, deadlines, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

import processes
from pagoda import LLM, __version__
from pagoda.errors import ConfigError
from pagoda.server.asked import reader as reader_module
from pagoda.server.ground.options import ServerOptions
from pagoda.server.ground.tenants import Tenants
from pagoda.server.watched import pulse
from server.process import Process
from server.running import MODEL, MOST_SECONDS, Running, running, unhurried, wait_until

LONG = {"model": MODEL, "prompt": "The sea was", "max_tokens": 3000, "ignore_eos": True}
SHORT = LONG | {"max_tokens": 2}
TENANTS = """
[tenants.alice]
api_key = ["one", "two"]
max_requests = 1

[tenants.bob]
api_key = "three"
is_admin = true
"""


def metric(server: Running, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(server.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def test_health_and_ready(server: Running) -> None:
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/ready").status_code == 200
    assert server.get("/nothing").json()["error"]["type"] == "not_found_error"
    assert server.post("/health").status_code == 405
    assert server.get("/version").json() == {"version": __version__}


@pytest.mark.parametrize("path", ["/", "/health", "/ready"])
def test_a_head_is_what_a_get_would_begin_with(server: Running, path: str) -> None:
    looked, read = httpx2.head(server.url + path, timeout=MOST_SECONDS), server.get(path)
    assert looked.status_code == read.status_code == 200
    assert (looked.headers["content-length"], looked.content) == (read.headers["content-length"], b"")


def test_it_is_not_ready_while_prompts_are_not_read(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "STUCK_SECONDS", 0.0)
    reader, goes_on = server.service.reader, threading.Event()
    with ThreadPoolExecutor(2) as pool:
        pool.submit(asyncio.run, reader.run("", goes_on.wait))
        wait_until(lambda: bool(reader._running))
        waiting = pool.submit(server.post, "/v1/completions", SHORT)
        wait_until(lambda: reader.num_waiting == 1)
        try:
            answer, health = server.get("/ready"), server.get("/health")
        finally:
            goes_on.set()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stuck")
        assert (health.status_code, "have not been read" in health.json()["trouble"]) == (200, True)
        assert waiting.result().status_code == 200
    assert server.get("/ready").status_code == 200


def test_it_is_not_ready_while_a_step_does_not_come_back(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "SILENT_SECONDS", 0.05)
    goes_on = threading.Event()
    server.llm.loop.call(goes_on.wait)
    try:
        wait_until(lambda: server.get("/ready").status_code == 503)
        assert "step has not come back" in server.get("/ready").json()["error"]["message"]
        assert server.get("/health").status_code == 200
    finally:
        goes_on.set()
    wait_until(lambda: server.get("/ready").status_code == 200)


def test_every_answer_has_an_id(server: Running) -> None:
    assert server.get("/health").headers["x-request-id"].startswith("req_")
    assert server.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert server.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


def test_metrics_count_what_requests_cost(server: Running) -> None:
    def counted() -> dict[str, float]:
        names = ("prompt_tokens_total", "generation_tokens_total", "prompt_tokens_cached_total")
        return {name: metric(server, "pagoda:" + name) for name in names}

    before = counted()
    prompt = "The room was a pleasant one, at the top of the house, overlooking the sea."
    usages = [server.post("/v1/completions", SHORT | {"prompt": prompt}).json()["usage"] for _ in range(2)]
    after = counted()
    assert after["prompt_tokens_total"] - before["prompt_tokens_total"] == sum(each["prompt_tokens"] for each in usages)
    assert after["generation_tokens_total"] - before["generation_tokens_total"] == 4
    cached = usages[1]["prompt_tokens_details"]["cached_tokens"]
    assert cached == usages[1]["prompt_tokens"] - 1
    assert after["prompt_tokens_cached_total"] - before["prompt_tokens_cached_total"] == cached
    assert metric(server, "pagoda:time_to_first_token_seconds_count") >= 2
    stats = server.llm.cache_stats().groups[0]
    assert metric(server, "pagoda:kv_pages") == stats.total
    assert metric(server, "pagoda:kv_pages", state="idle") == stats.idle
    assert metric(server, "pagoda:num_requests_running") == 0
    assert metric(server, "vllm:prompt_tokens_total") == 0
    phases = ("queue", "match", "promotion", "prefill", "decode", "sampling", "detokenise", "structured")
    numbers = {metric(server, "pagoda:request_phase_seconds_count", phase=phase) for phase in phases}
    assert len(numbers) == 1
    assert min(numbers) >= metric(server, "pagoda:e2e_request_latency_seconds_count") >= 2
    for phase in ("prefill", "decode", "sampling", "detokenise"):
        assert metric(server, "pagoda:request_phase_seconds_sum", phase=phase) > 0


def test_metrics_have_the_names_of_another_engine_too(llm: LLM) -> None:
    with running(llm, metrics_compat="vllm") as server:
        server.post("/v1/completions", SHORT)
        for name in ("prompt_tokens_total", "time_to_first_token_seconds_count", "num_requests_waiting"):
            assert metric(server, f"vllm:{name}") == metric(server, f"pagoda:{name}")
        assert metric(server, "vllm:prompt_tokens_total") > 0
        assert metric(server, "vllm:kv_pages") == 0


def test_a_key_is_needed_where_there_are_keys(llm: LLM) -> None:
    with running(llm, api_key=("secret",)) as server:
        assert server.get("/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}, {"x-api-key": ""}):
            answer = server.post("/v1/completions", SHORT, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert server.post("/v1/completions", SHORT, headers={"authorization": "Bearer secret"}).status_code == 200
        assert server.post("/v1/completions", SHORT, headers={"x-api-key": "secret"}).status_code == 200


def test_only_an_admin_resets_the_cache(llm: LLM) -> None:
    with running(llm, api_key=("user",), admin_api_key=("admin",)) as server:
        server.post("/v1/completions", SHORT, headers={"x-api-key": "user"})
        assert server.post("/reset_prefix_cache", headers={"x-api-key": "user"}).status_code == 403
        assert server.post("/reset_prefix_cache", headers={"x-api-key": "admin"}).json()["success"]
        assert server.llm.cache_stats().groups[0].idle == 0


def test_tenants_share_nothing_and_have_limits(llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(TENANTS)
    with running(llm, tenants=file) as server:
        prompt = "The room was a pleasant one, at the top of the house, overlooking the sea. " * 4

        def cached(key: str, **more: str) -> int:
            answer = server.post("/v1/completions", SHORT | {"prompt": prompt} | more, headers={"x-api-key": key})
            return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert cached("one") == 0
        assert cached("two") > 0
        assert cached("three") == 0
        assert cached("three", cache_salt="x") == 0
        assert cached("three", cache_salt="x") > 0
        url, body = server.url + "/v1/completions", LONG | {"stream": True}
        with (
            unhurried(llm),
            httpx2.stream("POST", url, json=body, headers={"x-api-key": "one"}, timeout=MOST_SECONDS) as stream,
        ):
            lines = stream.iter_lines()
            next(lines)
            refused = server.post("/v1/completions", SHORT, headers={"x-api-key": "two"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
            assert int(refused.headers["retry-after"]) >= 1
            assert server.post("/v1/completions", SHORT, headers={"x-api-key": "three"}).status_code == 200
        server.wait_until_idle()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have a table"),
        ("[tenants.a]", "has no key"),
        ('[tenants.a]\napi_key = "x"\ncolour = 1', "colour"),
        ('[tenants.a]\napi_key = "x"\n[tenants.b]\napi_key = "x"', "same API key"),
        ('[tenants.a]\napi_key = "x"\npage_quota = 2', "page_quota"),
        ('[tenants.a]\napi_key = "x"\nmax_requests = 0', "max_requests"),
        (
            '[tenants.a]\napi_key = "x"\npage_quota=0.7\n[tenants.b]\napi_key = "y"\nlease_budget=0.5',
            "reserve 1.2 of all pages",
        ),
        ('[tenants.a]\napi_key_sha256 = "x"', "64 hexadecimal"),
    ],
)
def test_wrong_tenants_are_a_named_error(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Tenants(ServerOptions(tenants=file))


def test_other_machines_need_a_key_or_a_word(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="allow-no-api-key"):
        ServerOptions(host="0.0.0.0")
    ServerOptions(host="0.0.0.0", api_key=("x",))
    ServerOptions(host="0.0.0.0", allow_no_api_key=True)
    ServerOptions(host="::1")


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
    ],
)
def test_a_full_queue_is_told_to_come_back(
    llm: LLM, path: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is read: that would be work of the reader for nothing."""
    goes_on = threading.Event()
    with running(llm, max_queued_requests=2) as server, ThreadPoolExecutor(1) as pool:
        llm.loop.call(goes_on.wait)
        first = pool.submit(server.post, "/v1/completions", SHORT | {"prompt": ["a", "b"]})
        wait_until(lambda: server.service.num_waiting == 2)
        monkeypatch.setattr(server.service.reader, "run", None)
        try:
            answer = server.post(path, {"model": MODEL, **asked})
        finally:
            goes_on.set()
        assert answer.status_code == 429
        assert "queue is full" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
        assert first.result().status_code == 200


def test_what_never_fits_the_queue_is_not_told_to_come_back(llm: LLM) -> None:
    with running(llm, max_queued_requests=2) as server:
        answer = server.post("/v1/completions", SHORT | {"prompt": ["a", "b", "c"]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
        assert "retry-after" not in answer.headers


def test_the_time_to_read_a_prompt_counts(server: Running) -> None:
    goes_on = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        reader = server.service.reader
        pool.submit(asyncio.run, reader.run("", goes_on.wait))
        wait_until(lambda: bool(reader._running))
        answer = pool.submit(server.post, "/v1/completions", SHORT, headers={"x-request-timeout": "0.05"})
        wait_until(lambda: reader.num_waiting == 1)
        time.sleep(0.1)
        goes_on.set()
        assert (answer.result().status_code, answer.result().json()["error"]["code"]) == (504, "deadline_exceeded")


def test_a_deadline_ends_a_request(server: Running) -> None:
    with unhurried(server.llm):
        answer = server.post("/v1/completions", LONG, headers={"x-request-timeout": "0.2"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        server.wait_until_idle()
        lines = server.post("/v1/completions", LONG | {"stream": True}, headers={"x-request-timeout": "0.3"}).text
        server.wait_until_idle()
    assert server.post("/v1/completions", LONG, headers={"x-request-timeout": "soon"}).status_code == 400
    last = [line for line in lines.splitlines() if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


def test_a_body_has_a_limit(llm: LLM) -> None:
    with running(llm, max_body_bytes=1000) as server:
        assert server.post("/v1/completions", SHORT | {"prompt": "x" * 2000}).status_code == 413

        def pieces():
            for _ in range(20):
                yield b" " * 100

        chunked = server.post("/v1/completions", content=pieces(), headers={"content-type": "application/json"})
        assert chunked.status_code == 413


def test_sigterm_lets_streams_finish() -> None:
    with Process(0, "--log-format", "json", "--drain-timeout-seconds", "100", starts_anew=True) as server:
        with httpx2.stream(
            "POST",
            server.url + "/v1/completions",
            json=LONG | {"max_tokens": 300, "stream": True},
            timeout=MOST_SECONDS,
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(timeout=MOST_SECONDS) == 0
        server.join()
    logged = [json.loads(line) for line in server.lines if '"path":"/v1/completions"' in line]
    assert [(each["status"], each["method"]) for each in logged] == [(200, "POST")]
    assert not [line for line in server.lines if "leaked" in line], "the compiled module was let go of"


def test_what_does_not_finish_in_time_is_cut() -> None:
    # More tokens than there are pages for, so that it lasts far longer than a test may be held up.
    body = LONG | {"prompt": ["The sea was", "The house was"], "n": 8, "stream": True}
    with Process(0, "--drain-timeout-seconds", "0.2") as server:
        with httpx2.stream("POST", server.url + "/v1/completions", json=body, timeout=MOST_SECONDS) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "cut"
        assert server.process.wait(timeout=MOST_SECONDS) == 0


def test_after_kill_9_a_restart_answers_at_the_same_port() -> None:
    with Process() as first:
        port = int(first.url.rsplit(":", 1)[1])
        with httpx2.stream(
            "POST", first.url + "/v1/completions", json=LONG | {"stream": True}, timeout=MOST_SECONDS
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(first.process.pid, signal.SIGKILL)
            first.process.wait()
        with Process(port) as second:
            assert httpx2.post(second.url + "/v1/completions", json=SHORT, timeout=MOST_SECONDS).status_code == 200


def test_a_port_that_is_taken_is_a_named_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = processes.run("serve", "--port", str(port), timeout=MOST_SECONDS)
    assert done.returncode == 2
    assert f"127.0.0.1:{port} cannot be listened on" in done.stderr


def test_slow_readers_get_every_token_once(server: Running) -> None:
    body = LONG | {"max_tokens": 400, "temperature": 0}
    whole = server.post("/v1/completions", body).json()["choices"][0]["text"]
    with httpx2.stream(
        "POST", server.url + "/v1/completions", json=body | {"stream": True}, timeout=MOST_SECONDS
    ) as stream:
        text = ""
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                if len(text) < 200:
                    time.sleep(0.02)
    assert text == whole


@pytest.mark.parametrize("path", ["/v1/completions/", "/v1/chat/completions/", "/health/", "/v1/kv/status/", "/docs/"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_slash_leads_nowhere_else(llm: LLM, path: str, method: str) -> None:
    """A redirect would go to whatever name the request came under."""
    with running(llm, api_key=("key",)) as server:
        headers = {"host": "evil.example", "x-api-key": "key"}
        answer = httpx2.request(method, server.url + path, headers=headers, follow_redirects=False)
    assert answer.status_code == 404
    assert "location" not in answer.headers


def test_somebody_who_only_looks_is_answered(server: Running) -> None:
    for path in ("/", "/health", "/ready"):
        answer = httpx2.head(server.url + path)
        assert (answer.status_code, answer.content) == (200, b"")
