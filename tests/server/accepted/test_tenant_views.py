"""What a tenant is told of the server and of itself does not depend on what other tenants do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pagoda import LLM
from pagoda.errors import ConfigError
from pagoda.server.asked.conversation import Conversation
from pagoda.server.asked.fingerprint import MOST_REMEMBERED, Fingerprint, History
from pagoda.server.ground.options import ServerOptions
from pagoda.server.ground.tenants import Tenants
from server.running import MODEL, TENANTS, Running, running

STORY = "The room was a pleasant one, at the top of the house, overlooking the sea. " * 4
A, B, OPERATOR = ({"x-api-key": key} for key in ("a", "b", "operator"))


@pytest.fixture
def tenants(tmp_path: Path) -> Path:
    file = tmp_path / "tenants.toml"
    file.write_text(TENANTS)
    return file


@pytest.fixture
def server(llm: LLM, tenants: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """With room for three stored responses of 64 KiB together; nothing is in its cache."""
    monkeypatch.setattr("pagoda.server.openai.responses.MOST_STORED", 3)
    monkeypatch.setattr("pagoda.server.openai.responses.MOST_STORED_NBYTES", 64 << 10)
    with running(llm, tenants=tenants) as server:
        llm.reset_prefix_cache()
        yield server
        server.wait_until_idle()


def respond(server: Running, headers: dict[str, str], **more: Any) -> str:
    asked = {"model": MODEL, "input": "Where is the harbour?", "max_output_tokens": 1} | more
    answer = server.post("/v1/responses", asked, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def test_stored_responses_outlast_those_of_others(server: Running) -> None:
    mine = respond(server, B)
    for _ in range(4):
        respond(server, A)
    assert server.get(f"/v1/responses/{mine}", headers=B).status_code == 200
    respond(server, B, previous_response_id=mine)
    for _ in range(2):
        respond(server, B)
    assert server.get(f"/v1/responses/{mine}", headers=B).status_code == 404


def test_fingerprints_outlast_those_of_others() -> None:
    history, fingerprint = History(), Fingerprint.of(Conversation(()), model=MODEL)
    history.remember("b", "mine", fingerprint)
    for number in range(MOST_REMEMBERED):
        history.remember("a", str(number), fingerprint)
    assert history.find("b", "mine") == fingerprint
    history.remember("a", "one more", fingerprint)
    assert (history.find("a", "0"), history.find("a", "1")) == (None, fingerprint)


def test_stored_texts_are_bounded(server: Running) -> None:
    other, first = respond(server, B), respond(server, A, user="x" * 40_000)
    assert server.get(f"/v1/responses/{first}", headers=A).json()["user"] == "x" * 40_000
    second = respond(server, A, safety_identifier="x" * 40_000)
    found = {each: server.get(f"/v1/responses/{each}", headers=A).status_code for each in (first, second)}
    assert found == {first: 404, second: 200}
    assert server.get(f"/v1/responses/{other}", headers=B).status_code == 200
    assert server.get(f"/v1/responses/{respond(server, A, user='x' * 80_000)}", headers=A).status_code == 404
    assert server.get(f"/v1/responses/{second}", headers=A).status_code == 200


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({str(number): "x" for number in range(17)}, "metadata"),
        ({"k" * 65: "x"}, "metadata." + "k" * 65),
        ({"key": "x" * 513}, "metadata.key"),
    ],
)
def test_metadata_has_limits(server: Running, metadata: dict[str, str], field: str) -> None:
    asked = {"model": MODEL, "input": "Hello", "metadata": metadata}
    answer = server.post("/v1/responses", asked, headers=A)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_metadata_within_the_limits_is_said_again(server: Running) -> None:
    metadata = {f"{number:064}": "x" * 512 for number in range(16)}
    found = server.get(f"/v1/responses/{respond(server, A, metadata=metadata)}", headers=A)
    assert found.json()["metadata"] == metadata


def test_the_tree_has_as_many_branches_whatever_others_have(server: Running) -> None:
    def complete(headers: dict[str, str], prompt: str) -> None:
        server.post("/v1/completions", {"model": MODEL, "prompt": prompt, "max_tokens": 1}, headers=headers)

    def roots(headers: dict[str, str]) -> list[dict[str, Any]]:
        answer = server.get("/v1/kv/tree?limit=2", headers=headers)
        return list(answer.json()["roots"])

    complete(B, STORY)
    alone = roots(B)
    assert alone[0]["branches"][0]["text"].startswith("The room was")
    for prompt in ("Once upon a time. " * 8, "It was a calm sea. " * 8):
        for _ in range(3):
            complete(A, prompt)
    assert roots(B) == alone
    assert [(root["tenant"], len(root["branches"])) for root in roots(OPERATOR)] == [("b", 0), ("a", 2)]


def status(server: Running, headers: dict[str, str]) -> dict[str, Any]:
    """Without what changes by itself."""
    found = server.get("/v1/kv/status", headers=headers).json()
    return {name: value for name, value in found.items() if name not in ("time", "uptime_seconds")}


def first_event(server: Running, headers: dict[str, str]) -> dict[str, Any]:
    with httpx2.stream("GET", server.url + "/v1/kv/events", timeout=30, headers=headers) as stream:
        line = next(line for line in stream.iter_lines() if line.startswith("data: "))
    found = json.loads(line.removeprefix("data: "))
    return {name: value for name, value in found.items() if name not in ("time", "uptime_seconds", "hours")}


def test_a_status_has_nothing_of_others(server: Running) -> None:
    mine = {"model": MODEL, "prompt": STORY, "max_tokens": 1}
    for _ in range(2):
        tokens = server.post("/v1/completions", mine, headers=B).json()["usage"]["prompt_tokens"]
    server.wait_until_idle()
    before, event = status(server, B), first_event(server, B)
    server.post("/v1/kv/pin", {"model": MODEL, "prompt": "Others. " * 20, "ttl_seconds": 60}, headers=A)
    for _ in range(3):
        server.post("/v1/completions", mine | {"prompt": "Once upon a time. " * 8}, headers=A)
    server.wait_until_idle()
    assert (status(server, B), first_event(server, B)) == (before, event)
    rate = (tokens - 1) / (2 * tokens)
    assert before["cache"] == {"hit_rate": rate, "hit_tokens": tokens - 1, "queried_tokens": 2 * tokens}
    assert set(before["memory"]) == {"pages"}
    counts = server.llm.cache_stats().groups[0]
    assert before["groups"][0]["total"] == counts.total
    assert set(before["groups"][0]) == {"name", "format", "page_nbytes", "page_tokens", "total"}
    assert (event["pages"], len(event["recent"])) == ([], 2)
    whole = first_event(server, OPERATOR)
    assert whole["groups"][0]["leased"] == counts.leased > 0
    assert (len(whole["pages"]), len(whole["recent"]), len(whole["leases"])) == (1, 6, 1)
    assert whole["leases"][0]["text"].startswith("Others. Others.")
    assert "evicted_pages" in whole["cache"]
    assert (before["sees_all"], whole["sees_all"]) == (False, True)
    assert all(each["spent"]["work"] == {} for each in event["recent"])
    assert all(each["spent"]["work"]["prefill"] > 0 for each in whole["recent"])


def test_what_is_remembered_of_a_tenant_outlasts_others(server: Running) -> None:
    mine = {"model": MODEL, "prompt": ["Hello"], "max_tokens": 1}
    server.post("/v1/completions", mine, headers=B)
    for _ in range(2):
        server.post("/v1/completions", mine | {"prompt": ["Hello"] * 128}, headers=A)
    server.wait_until_idle()
    assert [len(first_event(server, each)["recent"]) for each in (A, B, OPERATOR)] == [240, 1, 240]


@pytest.mark.parametrize("several", [False, True])
def test_who_is_alone_sees_everything(llm: LLM, tmp_path: Path, several: bool) -> None:
    file = tmp_path / "one.toml"
    file.write_text('[tenants.a]\napi_key = "a"\n')
    keys = ("other",) if several else ()
    with running(llm, tenants=file, api_key=keys) as server:
        found = status(server, A)
        assert found["sees_all"] == ("evicted_pages" in found["cache"]) == ("free" in found["groups"][0]) != several
    with running(llm, api_key=("user",), admin_api_key=("admin",)) as server:
        assert status(server, {"x-api-key": "user"})["sees_all"]


def test_metrics_of_all_tenants_are_for_admins(server: Running) -> None:
    found = [server.get("/metrics", headers=headers) for headers in ({}, A, OPERATOR)]
    assert [each.status_code for each in found] == [401, 403, 200]
    assert found[1].json()["error"]["code"] == "admin_only"
    assert "pagoda:prompt_tokens_total" in found[2].text


@pytest.mark.parametrize("with_tenants", [False, True])
def test_metrics_can_be_open(llm: LLM, tenants: Path, with_tenants: bool) -> None:
    options = {"tenants": tenants, "metrics_without_key": True} if with_tenants else {"api_key": ("secret",)}
    with running(llm, **options) as server:
        assert server.get("/metrics").status_code == 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[tenants.""]\napi_key = "x"', "name is empty"),
        ('[tenants.a]\napi_key = "x"\nis_admin = "no"', "is_admin of tenant 'a'"),
        ('[tenants.a]\napi_key = "x"\nis_admin = 1', "is_admin of tenant 'a'"),
        ('[tenants.a]\napi_key = "x"\npage_quota = true', "page_quota of tenant 'a'"),
        ('[tenants.a]\napi_key = "x"\nlease_budget = false', "lease_budget of tenant 'a'"),
        ('[tenants.a]\napi_key = "x"\nlease_budget = nan', "lease_budget of tenant 'a'"),
        ('[tenants.a]\napi_key = "x"\nmax_requests = true', "max_requests of tenant 'a'"),
        ('[tenants.a]\napi_key = "x"\nmax_requests = 1.0', "max_requests of tenant 'a'"),
    ],
)
def test_values_of_another_type_are_a_named_error(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Tenants(ServerOptions(tenants=file))


@pytest.mark.parametrize(
    ("admin_key", "with_tenants", "status"), [((), False, 200), (("x",), False, 403), ((), True, 403)]
)
def test_every_key_is_an_admins_where_there_are_no_others(
    llm: LLM, tenants: Path, admin_key: tuple[str, ...], with_tenants: bool, status: int
) -> None:
    file = tenants if with_tenants else None
    with running(llm, api_key=("key",), admin_api_key=admin_key, tenants=file) as server:
        assert server.post("/reset_prefix_cache", headers={"x-api-key": "key"}).status_code == status
