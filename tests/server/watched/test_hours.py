"""The samples of the last hours: what they count, that they are bounded, and who is told of which."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pagoda import LLM
from pagoda.engine.request import RequestMetrics
from pagoda.server.watched import hours as hours_module
from pagoda.server.watched.hours import KEPT_SECONDS, MOST_SAMPLES, SAMPLE_SECONDS, Hours, Sample
from server.running import MODEL, MOST_SECONDS, TENANTS, Running, running, unhurried, wait_until

SHORT = {"model": MODEL, "prompt": "The sea was", "max_tokens": 2, "ignore_eos": True}
STATUSES = ("400", "401", "404", "429", "499", "500", "503", "504")


@dataclass
class Made:
    """What is looked at of a job."""

    metrics: RequestMetrics
    num_output_tokens: int = 0


def request(num_generated: int = 0, ttft_seconds: float | None = None, is_scheduled: bool = True) -> Any:
    metrics = RequestMetrics(
        arrival=100.0,
        first_scheduled=100.0 if is_scheduled else None,
        first_token=None if ttft_seconds is None else 100.0 + ttft_seconds,
    )
    return Made(metrics, num_generated)


def generate(request: Made, num_tokens: int) -> None:
    request.num_output_tokens += num_tokens


def samples(hours: Hours, tenant: str | None = None) -> list[Sample]:
    return list(hours.of(tenant).samples)


def test_a_sample_says_what_happened_since_the_last() -> None:
    hours = Hours()
    hours.add("a", [request(30, ttft_seconds=seconds / 100) for seconds in range(1, 101)])
    hours.add_error("a")
    hours.add_error(None)
    hours.take(50.0, 10.0, [("a", request(is_scheduled=False)), ("b", request(5))])
    assert samples(hours) == [
        Sample(
            time=50.0,
            seconds=10.0,
            tokens_per_second=300.5,
            requests_per_second=10.0,
            waiting=1,
            running=1,
            ttft_p95_seconds=pytest.approx(0.95),
            errors=2,
        )
    ]
    hours.take(60.0, 10.0, [("b", request(5))])
    second = samples(hours)[1]
    assert (second.tokens_per_second, second.requests_per_second, second.errors) == (0, 0, 0)
    assert (second.waiting, second.running, second.ttft_p95_seconds) == (0, 1, None)


def test_tokens_count_when_they_are_generated_and_once() -> None:
    hours, long = Hours(), request()
    rates = []
    for num_tokens in (20, 0, 40):
        generate(long, num_tokens)
        hours.take(0.0, 10.0, [("a", long)])
        rates.append(samples(hours)[-1].tokens_per_second)
    generate(long, 10)
    hours.add("a", [long])
    hours.take(0.0, 10.0, [])
    assert [*rates, samples(hours)[-1].tokens_per_second] == [2, 0, 4, 1]


def test_each_tenant_has_its_own() -> None:
    hours = Hours()
    hours.add("a", [request(20)])
    hours.add("b", [request(50)])
    hours.add_error("b")
    hours.take(0.0, 10.0, [("b", request())])
    found = {name: samples(hours, name)[0] for name in ("a", "b", None)}
    assert {name: each.tokens_per_second for name, each in found.items()} == {"a": 2, "b": 5, None: 7}
    assert {name: (each.errors, each.running) for name, each in found.items()} == {
        "a": (0, 0),
        "b": (1, 1),
        None: (1, 1),
    }
    assert samples(hours, "c") == []


def test_a_quiet_time_leaves_no_sample_and_what_is_old_goes() -> None:
    hours = Hours()
    for number in range(3 * MOST_SAMPLES):
        hours.take(number * SAMPLE_SECONDS, SAMPLE_SECONDS, [("a", request())] if number % 3 else [])
    kept = samples(hours, "a")
    assert 0.6 * MOST_SAMPLES < len(kept) <= MOST_SAMPLES
    assert kept[-1].time - kept[0].time <= KEPT_SECONDS
    end = 3 * MOST_SAMPLES * SAMPLE_SECONDS
    hours.take(end + KEPT_SECONDS, SAMPLE_SECONDS, [])
    assert samples(hours) == samples(hours, "a") == []


def test_there_are_never_more_than_so_many() -> None:
    hours = Hours()
    for number in range(MOST_SAMPLES + 10):
        hours.take(float(number), 1.0, [("a", request())])
    track = hours.of(None)
    assert (len(track.samples), track.num_kept) == (MOST_SAMPLES, MOST_SAMPLES + 10)
    assert [each["time"] for each in track.since(track.num_kept - 2)] == [MOST_SAMPLES + 8.0, MOST_SAMPLES + 9.0]
    assert (len(track.since(0)), track.since(track.num_kept)) == (MOST_SAMPLES, [])


def first_event(server: Running, headers: dict[str, str] | None = None) -> dict[str, Any]:
    with httpx2.stream("GET", server.url + "/v1/kv/events", timeout=MOST_SECONDS, headers=headers) as stream:
        line = next(line for line in stream.iter_lines() if line.startswith("data: "))
    return dict(json.loads(line.removeprefix("data: ")))


def test_the_feed_begins_with_all_of_them(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hours_module, "SAMPLE_SECONDS", 0.1)
    with running(llm) as server:
        server.post("/v1/completions", SHORT)
        server.post("/v1/completions", SHORT | {"max_tokens": -1})
        wait_until(lambda: sum(each.errors for each in server.service.hours.of(None).samples) == 1)
        first, second = first_event(server)["hours"], first_event(server)["hours"]
        assert first == second, "whoever comes again finds it again"
        assert sum(round(each["tokens_per_second"] * each["seconds"]) for each in first) == 2
        assert sum(round(each["requests_per_second"] * each["seconds"]) for each in first) == 1
        assert max(each["ttft_p95_seconds"] or 0 for each in first) > 0


def test_a_tenant_is_told_of_its_own(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hours_module, "SAMPLE_SECONDS", 0.1)
    file = tmp_path / "tenants.toml"
    file.write_text(TENANTS)
    with running(llm, tenants=file) as server:
        for key, count in (("a", 1), ("b", 2)):
            for _ in range(count):
                server.post("/v1/completions", SHORT, headers={"x-api-key": key})
        server.post("/v1/completions", SHORT, headers={"x-api-key": "nobody's"})
        wait_until(lambda: sum(each.errors for each in server.service.hours.of(None).samples) == 1)

        def counts(key: str) -> tuple[int, int]:
            found = first_event(server, {"x-api-key": key})["hours"]
            ended = sum(round(each["requests_per_second"] * each["seconds"]) for each in found)
            return ended, sum(each["errors"] for each in found)

        assert {key: counts(key) for key in ("a", "b", "operator")} == {"a": (1, 0), "b": (2, 0), "operator": (3, 1)}


def errors_by_status(server: Running) -> dict[str, float]:
    metric = server.service.metrics.registry.get_sample_value
    labels = {"model_name": MODEL, "engine": "0"}
    found = {status: metric("pagoda:request_errors_total", {**labels, "status": status}) for status in STATUSES}
    return {status: value for status, value in found.items() if value}


@pytest.mark.parametrize("streams", [False, True])
def test_each_request_that_fails_counts_once_whenever_it_does(llm: LLM, streams: bool) -> None:
    long = SHORT | {"max_tokens": 3000, "stream": streams}
    with running(llm, api_key=("secret",)) as server, unhurried(llm):
        key = {"x-api-key": "secret"}
        server.post("/v1/completions", long)
        server.post("/v1/completions", long | {"model": "another"}, headers=key)
        server.post("/v1/completions", long | {"temperature": "warm"}, headers=key)
        server.post("/v1/completions", long, headers=key | {"x-request-timeout": "0.3"})
        server.get("/v1/models/another", headers=key)
        server.wait_until_idle()
        assert errors_by_status(server) == {"400": 1, "401": 1, "404": 1, "504": 1}


def test_a_client_that_leaves_is_no_error_of_the_hours(llm: LLM) -> None:
    body = SHORT | {"max_tokens": 3000, "stream": True}
    with running(llm) as server, unhurried(llm):
        with httpx2.stream("POST", server.url + "/v1/completions", json=body, timeout=MOST_SECONDS) as stream:
            next(stream.iter_lines())
        server.wait_until_idle()
        assert errors_by_status(server) == {"499": 1}
        server.service.hours.take(0.0, 1.0, [])
        assert sum(each.errors for each in samples(server.service.hours)) == 0
