"""Named caches: what they answer, that requests of every API hit them to the token, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from pagoda import LLM
from pagoda.config import TenantShare
from pagoda.server.accepted import contents
from server.running import MODEL, TENANTS, Running, running, wait_until

STORY = "The room was a pleasant one, at the top of the house, overlooking the sea. " * 4
SYSTEM = {"role": "system", "content": "You are the keeper of a lighthouse. " * 8}
QUESTION = [{"role": "user", "content": "Where is the harbour?"}]
TOOL = {"type": "function", "function": {"name": "horn", "description": "Sound it.", "parameters": {"type": "object"}}}


@pytest.fixture(autouse=True)
def nothing_named(session_server: Running):
    """Whatever other tests have named."""
    session_server.service.contents._shelves.clear()
    yield
    session_server.service.contents._shelves.clear()


def made(server: Running, **body: Any) -> dict[str, Any]:
    answer = server.post("/v1/kv/caches", {"model": MODEL, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(server: Running, path: str, body: dict[str, Any]) -> tuple[int, str, str]:
    answer = server.post(path, {"model": MODEL, **body})
    error = answer.json()["error"]
    return answer.status_code, error.get("param"), error["message"]


def leases(server: Running) -> list[dict[str, Any]]:
    return server.get("/v1/kv/status").json()["leases"]


def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)


def test_it_says_what_it_is_and_until_when(server: Running) -> None:
    before = datetime.now(UTC)
    found = made(server, messages=[SYSTEM], name="keeper", display_name="The keeper", ttl="300s")
    assert (found["name"], found["display_name"], found["model"]) == ("caches/keeper", "The keeper", MODEL)
    assert found["lease"] == {"granted": True}
    expires = datetime.fromisoformat(found["expire_time"]) - timedelta(seconds=300)
    assert before - timedelta(seconds=1) < expires < datetime.now(UTC) + timedelta(seconds=1)
    assert found["usage"]["total_tokens"] == leases(server)[0]["tokens"] > 20
    other = made(server, prompt=STORY)
    assert other["name"].startswith("caches/")
    listed = server.get("/v1/kv/caches").json()["data"]
    assert [each["name"] for each in listed] == ["caches/keeper", other["name"]]
    assert server.get("/v1/kv/caches/keeper").json() == server.get("/v1/kv/caches/caches/keeper").json() == found


def test_chats_of_openai_hit_it_to_the_token(server: Running) -> None:
    total = made(server, messages=[SYSTEM], name="keeper")["usage"]["total_tokens"]
    for _ in range(2):
        answer = client(server).chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=2, extra_body={"cached_content": "caches/keeper"}
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens >= total
    whole = client(server).chat.completions.create(model=MODEL, messages=[SYSTEM, *QUESTION], max_tokens=2)
    assert whole.usage.prompt_tokens == answer.usage.prompt_tokens


def test_a_conversation_goes_on_behind_it(server: Running) -> None:
    made(server, messages=[SYSTEM], name="keeper")
    body = {"model": MODEL, "max_tokens": 8, "cached_content": "keeper", "messages": QUESTION}
    first = server.post("/v1/chat/completions", body).json()
    said = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    turns = [*QUESTION, said, {"role": "user", "content": "And then?"}]
    second = server.post("/v1/chat/completions", body | {"messages": turns}).json()["usage"]
    assert second["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"]
    assert len(leases(server)) == 1


def test_tools_of_it_can_be_called(server: Running) -> None:
    made(server, messages=[SYSTEM], tools=[TOOL], name="keeper")
    answer = client(server).chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=200,
        tool_choice="required",
        extra_body={"cached_content": "keeper", "ignore_eos": False},
    )
    assert answer.choices[0].finish_reason in ("tool_calls", "length")
    assert (
        answer.choices[0].message.tool_calls is None or answer.choices[0].message.tool_calls[0].function.name == "horn"
    )


def test_responses_and_messages_hit_it(server: Running) -> None:
    total = made(server, messages=[SYSTEM], name="keeper")["usage"]["total_tokens"]
    more = {"cached_content": "caches/keeper"}
    response = client(server).responses.create(
        model=MODEL, input="Where is the harbour?", max_output_tokens=2, extra_body=more
    )
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens >= total
    asking = anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0)
    message = asking.messages.create(model=MODEL, messages=QUESTION, max_tokens=2, extra_body=more)
    assert message.usage.cache_read_input_tokens >= total
    counted = asking.messages.count_tokens(model=MODEL, messages=QUESTION, extra_body=more)
    usage = message.usage
    assert (
        counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    )


def test_completions_go_on_from_text_and_from_tokens(server: Running) -> None:
    total = made(server, prompt=STORY, name="story")["usage"]["total_tokens"]
    for prompt in (" I looked out.", [300, 301]):
        answer = client(server).completions.create(
            model=MODEL, prompt=prompt, max_tokens=1, echo=True, extra_body={"cached_content": "caches/story"}
        )
        assert answer.usage.prompt_tokens_details.cached_tokens >= total
        assert answer.choices[0].text.startswith(STORY)
    tokens = server.post("/tokenize", {"prompt": STORY}).json()["tokens"]
    made(server, prompt=tokens, name="tokens")
    answer = client(server).completions.create(
        model=MODEL, prompt=" I", max_tokens=1, extra_body={"cached_content": "tokens"}
    )
    assert answer.usage.prompt_tokens_details.cached_tokens >= len(tokens)


def test_only_its_end_can_be_changed_and_the_lease_goes_with_it(server: Running) -> None:
    made(server, messages=[SYSTEM], name="keeper", ttl=3600)
    changed = server.patch("/v1/kv/caches/keeper", {"ttl": "60s"})
    assert changed.json()["lease"] == {"granted": True}
    assert leases(server)[0]["expires_in_seconds"] <= 60
    assert server.patch("/v1/kv/caches/keeper", {"display_name": "x"}).status_code == 400
    end = (datetime.now(UTC) + timedelta(seconds=600)).isoformat()
    assert server.patch("/v1/kv/caches/keeper", {"expire_time": end}).status_code == 200
    assert leases(server)[0]["expires_in_seconds"] > 500
    assert server.delete("/v1/kv/caches/keeper").json()["deleted"]
    assert leases(server) == []
    assert server.get("/v1/kv/caches/keeper").status_code == 404


def test_it_goes_at_its_end_and_so_does_its_lease_however_often_it_was_used(server: Running) -> None:
    made(server, messages=[SYSTEM], name="keeper", ttl=3)
    chat = {"model": MODEL, "messages": QUESTION, "max_tokens": 1, "cached_content": "keeper"}
    wait_until(lambda: server.post("/v1/chat/completions", chat).status_code == 404)
    wait_until(lambda: not leases(server))
    made(server, messages=[SYSTEM], name="keeper")


def test_two_names_of_the_same_keep_one_lease(server: Running) -> None:
    for name in ("one", "two"):
        made(server, messages=[SYSTEM], name=name)
    assert len(leases(server)) == 1
    server.delete("/v1/kv/caches/one")
    assert len(leases(server)) == 1
    server.delete("/v1/kv/caches/two")
    assert leases(server) == []


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [SYSTEM, *QUESTION]}, "cached_content"),
        ("/v1/chat/completions", {"messages": QUESTION, "tools": [TOOL]}, "cached_content"),
        ("/v1/chat/completions", {"messages": QUESTION, "cache_salt": "mine"}, "cache_salt"),
        ("/v1/responses", {"input": "Where?", "instructions": "Be brief."}, "cached_content"),
        ("/v1/completions", {"prompt": "Where?"}, "cached_content"),
    ],
)
def test_what_would_miss_it_is_refused(server: Running, path: str, body: dict[str, Any], param: str) -> None:
    made(server, messages=[SYSTEM], name="keeper")
    assert refused(server, path, body | {"cached_content": "keeper"})[:2] == (400, param)


def test_messages_of_anthropic_with_a_system_prompt_are_refused(server: Running) -> None:
    made(server, messages=[SYSTEM], name="keeper")
    body = {"messages": QUESTION, "system": "Be brief.", "max_tokens": 1, "cached_content": "keeper"}
    status, _, message = refused(server, "/v1/messages", body)
    assert (status, "system prompt or tools of its own" in message) == (400, True)


def test_a_template_that_puts_something_before_it_is_told_of(llm: LLM, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages | length }}{% for each in messages %}{{ each.content }}{% endfor %}")
    with running(llm, chat_template=template) as server:
        made(server, messages=[SYSTEM], name="keeper")
        status, param, message = refused(
            server, "/v1/chat/completions", {"messages": QUESTION, "cached_content": "keeper"}
        )
    assert (status, param, "chat template" in message) == (400, "cached_content", True)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "x", "messages": QUESTION}, "prompt"),
        ({"prompt": "x", "tools": [TOOL]}, "tools"),
        ({"prompt": "x", "ttl": "5m"}, "ttl"),
        ({"prompt": "x", "ttl": 0}, "ttl"),
        ({"prompt": "x", "ttl": 1e9}, "ttl"),
        ({"prompt": "x", "expire_time": "soon"}, "expire_time"),
        ({"prompt": "x", "expire_time": "2020-01-01T00:00:00Z"}, "expire_time"),
        ({"prompt": "x", "ttl": 5, "expire_time": "2099-01-01"}, "expire_time"),
        ({"prompt": "x", "name": "a/b"}, "name"),
    ],
)
def test_what_cannot_be_named_is_refused(server: Running, body: dict[str, Any], param: str) -> None:
    assert refused(server, "/v1/kv/caches", body)[:2] == (400, param)


def test_a_name_is_taken_once_and_there_is_an_end_to_them(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    made(server, prompt="The sea", name="sea")
    assert refused(server, "/v1/kv/caches", {"prompt": "Another", "name": "caches/sea"})[:2] == (409, "name")
    monkeypatch.setattr(contents, "MOST_CONTENTS", 1)
    assert refused(server, "/v1/kv/caches", {"prompt": "Another"})[0] == 400
    monkeypatch.setattr(contents, "MOST_CONTENTS", 10)
    monkeypatch.setattr(contents, "MOST_NBYTES", 10)
    assert "delete some" in refused(server, "/v1/kv/caches", {"prompt": "Another"})[2]


def test_one_that_is_not_leased_works_and_says_so(tmp_path: Path) -> None:
    tenants = {"a": TenantShare(), "b": TenantShare(), "operator": TenantShare()}  # who may lease nothing
    file = tmp_path / "tenants.toml"
    file.write_text(TENANTS)
    with (
        LLM(kv_cache_memory_bytes=16 << 20, num_threads=1, tenants=tenants) as llm,
        running(llm, tenants=file) as server,
    ):
        mine, other = {"x-api-key": "a"}, {"x-api-key": "b"}
        body = {"model": MODEL, "messages": [SYSTEM], "name": "keeper"}
        found = server.post("/v1/kv/caches", body, headers=mine).json()
        assert found["lease"]["granted"] is False
        assert "no room" in found["lease"]["note"]
        chat = {"model": MODEL, "messages": QUESTION, "max_tokens": 1, "cached_content": "keeper"}
        usage = server.post("/v1/chat/completions", chat, headers=mine).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= found["usage"]["total_tokens"]
        assert server.post("/v1/chat/completions", chat, headers=other).status_code == 404
        assert server.get("/v1/kv/caches/keeper", headers=other).status_code == 404
        assert server.delete("/v1/kv/caches/keeper", headers=other).status_code == 404
        assert server.get("/v1/kv/caches", headers={"x-api-key": "operator"}).json()["data"] == []
        assert server.delete("/v1/kv/caches/keeper", headers=mine).status_code == 200
