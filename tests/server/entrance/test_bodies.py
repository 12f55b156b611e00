"""Bodies: how large each may be, how many bytes there may be of all, and where they are read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pagoda import LLM
from pagoda.errors import HttpError
from pagoda.server.asked.json_shape import check_shape
from pagoda.server.entrance import body_route
from pagoda.server.entrance.bodies import MOST_BODIES, Bodies
from pagoda.server.entrance.pace import Pace
from server.raw import Client, head, post, status
from server.running import MODEL, Running, running, unhurried, wait_until

SHORT = {"model": MODEL, "prompt": "The sea was", "max_tokens": 1}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "The sea"}], "max_tokens": 1}
JSON = {"content-type": "application/json"}
MANY = [[]] * 200_000
DEEP = json.loads("[" * 200 + "]" * 200)


def call(arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "a", "annotations": MANY}]}),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "a", "annotations": DEEP}]}),
        ("/v1/chat/completions", CHAT | {"chat_template_kwargs": {"a": MANY}}),
        ("/v1/chat/completions", CHAT | {"metadata": {str(number): "" for number in range(100_000)}}),
        (
            "/v1/chat/completions",
            CHAT
            | {"messages": [*CHAT["messages"], {"role": "assistant", "tool_calls": [call(json.dumps({"a": MANY}))]}]},
        ),
        ("/v1/messages", CHAT | {"tools": [{"name": "f", "input_schema": {"enum": MANY}}]}),
        ("/v1/messages/count_tokens", CHAT | {"tools": [{"name": "f", "input_schema": {"enum": DEEP}}]}),
        ("/v1/responses", {"model": MODEL, "input": [{"type": "reasoning", "content": MANY}]}),
        (
            "/v1/responses",
            {
                "model": MODEL,
                "input": [
                    {"role": "user", "content": "a"},
                    {"type": "function_call", "name": "f", "call_id": "c", "arguments": json.dumps([MANY])},
                ],
            },
        ),
        ("/v1/completions", SHORT | {"logit_bias": {str(number): [[]] for number in range(50_000)}}),
        ("/tokenize", {"messages": [{"role": "user", "content": "a", "annotations": MANY}]}),
        ("/v1/kv/pin", CHAT | {"ttl_seconds": 1, "tools": MANY}),
    ],
)
def test_more_values_than_anybody_needs_are_refused(server: Running, path: str, body: dict) -> None:
    answer = server.post(path, body)
    assert answer.status_code == 400
    assert any(word in answer.json()["error"]["message"] for word in ("too many values", "nested"))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b'{"model": ', None),
        (b"[" * 100, None),
        (b"\xff\xfe{\0}\0", None),
        (b"9" * 5000, None),
        (b"[]", "model_type"),
    ],
)
@pytest.mark.parametrize("padding", [0, 100_000, 2_000_000])
def test_what_is_no_body_is_told_so_however_long_it_is(
    server: Running, content: bytes, code: str | None, padding: int
) -> None:
    answer = server.post("/v1/completions", content=b" " * padding + content, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == code


def test_a_body_that_is_missing_is_told_so(server: Running) -> None:
    answer = server.post("/v1/completions", content=b"", headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "missing")


def test_what_a_client_wrote_is_not_told_back_at_length(server: Running) -> None:
    name = "x" * 100_000
    for path, body in (
        ("/v1/completions", SHORT | {name: 1, "n": 0}),
        ("/v1/completions", SHORT | {"model": name}),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": name}]}),
        ("/v1/messages", CHAT | {"messages": [{"role": name, "content": "a"}]}),
        ("/v1/responses", {"model": MODEL, "input": "a", "previous_response_id": name}),
    ):
        answer = server.post(path, body)
        assert 400 <= answer.status_code < 500
        assert len(answer.content) < 10_000


def test_large_bodies_are_read_beside_the_event_loop(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def checked(content: bytes) -> None:
        threads.append(threading.current_thread().name)
        check_shape(content)

    monkeypatch.setattr(body_route, "check_shape", checked)
    for length in (100, 200_000):
        assert server.post("/v1/completions", SHORT | {"user": "x" * length}).status_code == 200
    assert [name.startswith("pagoda-reader") for name in threads] == [False, True]


def test_large_bodies_say_the_same(server: Running) -> None:
    """As small ones, which are read by another reader."""
    for extra in ("", "x" * 100_000, "x" * 2_000_000):
        body = {"model": MODEL, "prompt": "The sea was", "max_tokens": 4, "temperature": 0, "user": extra}
        assert server.post("/v1/completions", body).json()["usage"]["completion_tokens"] == 4
        wrong = server.post("/v1/completions", body | {"max_tokens": "4"}).json()["error"]
        assert (wrong["param"], wrong["code"]) == ("max_tokens", "int_type")


def test_a_client_that_goes_before_its_body_has_come_is_no_failure(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pagoda.access")
    with Client(server.url) as client:
        client.send(head("POST", "/v1/completions", "Content-Type: application/json", "Content-Length: 100") + b"{")
    wait_until(lambda: [record for record in caplog.records if record.name == "pagoda.access"])
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_bodies_count_until_the_end_of_their_requests() -> None:
    bodies = Bodies(100, has_tenants=False)
    with ExitStack() as stack:
        for _ in range(MOST_BODIES):
            stack.enter_context(bodies.hold("")).expect(100)
        with pytest.raises(HttpError) as refused, bodies.hold("") as body:
            body.add(1)
        assert (refused.value.status, refused.value.retry_after_seconds) == (429, 1)
    with bodies.hold("") as body:
        body.add(60)
        body.add(40)
        with pytest.raises(HttpError) as refused:
            body.add(1)
    assert refused.value.status == 413


def test_one_tenant_leaves_room_for_others() -> None:
    bodies = Bodies(100, has_tenants=True)
    with ExitStack() as stack:

        def fill(tenant: str, count: int) -> None:
            for _ in range(count):
                stack.enter_context(bodies.hold(tenant)).expect(100)

        fill("alice", MOST_BODIES // 2)
        with pytest.raises(HttpError) as refused:
            fill("alice", 1)
        assert refused.value.status == 429
        fill("bob", MOST_BODIES // 2)
        with pytest.raises(HttpError) as refused:
            fill("carol", 1)
        assert refused.value.status == 503


@pytest.fixture
def two_tenants(llm: LLM, tmp_path: Path) -> Iterator[Running]:
    file = tmp_path / "tenants.toml"
    file.write_text('[tenants.alice]\napi_key = "one"\n[tenants.bob]\napi_key = "two"\n')
    with running(llm, tenants=file, max_body_bytes=10_000) as server:
        yield server
        server.wait_until_idle()


def test_requests_of_tenants_are_paced(two_tenants: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    async def start(_: Pace, tenant: str) -> None:
        taken.append(tenant)

    monkeypatch.setattr(Pace, "start", start)
    assert two_tenants.get("/health").status_code == 200
    assert two_tenants.get("/v1/models", headers={"x-api-key": "two"}).status_code == 200
    assert two_tenants.get("/v1/models", headers={"x-api-key": "none"}).status_code == 401
    assert taken == ["bob"]


def test_bodies_of_requests_in_flight_are_bounded(two_tenants: Running) -> None:
    server = two_tenants
    body = SHORT | {"max_tokens": 3000, "ignore_eos": True, "user": "x" * 9800}
    with unhurried(server.llm), ExitStack() as stack:
        for _ in range(MOST_BODIES // 2):
            stack.enter_context(Client(server.url)).send(post("/v1/completions", body, "X-Api-Key: one"))
        wait_until(lambda: len(server.service.in_flight) == MOST_BODIES // 2)
        refused = server.post("/v1/completions", body, headers={"x-api-key": "one"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_bytes")
        assert server.post("/v1/completions", SHORT, headers={"x-api-key": "two"}).status_code == 200
    server.wait_until_idle()
    assert server.post("/v1/completions", SHORT, headers={"x-api-key": "one"}).status_code == 200


def test_without_a_key_no_body_is_waited_for(two_tenants: Running) -> None:
    with Client(two_tenants.url) as client:
        client.send(head("POST", "/v1/completions", "Content-Type: application/json", "Content-Length: 9000"))
        assert status(client.receive_some()) == 401
