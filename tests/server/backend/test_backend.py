"""The app over a backend that is no LLM: each API answers with what that one says, and tells of what it holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import pagoda
from server.backend.toy import MAX_MODEL_LEN, ToyBackend
from server.running import MODEL, MOST_SECONDS, Serving, serving

TOKENIZER = Path(pagoda.__file__).parent / "assets" / "tiny"
PROMPT = "The sea was calm and"
MESSAGES = [{"role": "user", "content": "Where is the harbour?"}]


@pytest.fixture(scope="module")
def toy() -> Iterator[ToyBackend]:
    backend = ToyBackend(str(TOKENIZER))
    yield backend
    backend.thread.shutdown()


@pytest.fixture(scope="module")
def server(toy: ToyBackend) -> Iterator[Serving]:
    with serving(toy) as served:
        yield served


def reversed_text(toy: ToyBackend, prompt: str, max_tokens: int | None = None) -> str:
    return toy.text_of(toy.answer_to(toy.texts.read(prompt).token_ids, max_tokens))


def events(server: Serving, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with httpx2.stream("POST", server.url + path, json={"stream": True, **body}, timeout=MOST_SECONDS) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def test_completions(server: Serving, toy: ToyBackend) -> None:
    prompts = [PROMPT, "A storm came up"]
    answer = server.post("/v1/completions", {"model": MODEL, "prompt": prompts, "max_tokens": 3}).json()
    expected = [reversed_text(toy, PROMPT, 3), reversed_text(toy, "A storm came up", 3)]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"]["completion_tokens"] == 6
    told = events(server, "/v1/completions", {"model": MODEL, "prompt": PROMPT, "max_tokens": 64})
    assert "".join(each["choices"][0]["text"] for each in told) == reversed_text(toy, PROMPT)
    assert told[-1]["choices"][0]["finish_reason"] == "stop"


def test_chats(server: Serving, toy: ToyBackend) -> None:
    expected = reversed_text(toy, "user says Where is the harbour?")
    body = {"model": MODEL, "messages": MESSAGES}
    answer = server.post("/v1/chat/completions", body).json()
    assert answer["choices"][0]["message"]["content"] == expected
    told = events(server, "/v1/chat/completions", body)
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in told) == expected


def test_messages(server: Serving, toy: ToyBackend) -> None:
    expected = reversed_text(toy, "user says Where is the harbour?")
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 64}
    answer = server.post("/v1/messages", body).json()
    assert ([block["text"] for block in answer["content"]], answer["stop_reason"]) == ([expected], "end_turn")
    told = events(server, "/v1/messages", body)
    assert "".join(each["delta"]["text"] for each in told if each["type"] == "content_block_delta") == expected


def test_responses(server: Serving, toy: ToyBackend) -> None:
    expected = reversed_text(toy, "user says Where is the harbour?")
    body = {"model": MODEL, "input": "Where is the harbour?"}
    answer = server.post("/v1/responses", body).json()
    assert answer["output"][0]["content"][0]["text"] == expected
    told = events(server, "/v1/responses", body)
    assert "".join(each["delta"] for each in told if each["type"] == "response.output_text.delta") == expected
    more = {"previous_response_id": answer["id"], "input": "And the ship?"}
    earlier = f"user says Where is the harbour?\nassistant says {expected}\nuser says And the ship?"
    again = server.post("/v1/responses", {**body, **more}).json()
    assert again["output"][0]["content"][0]["text"] == reversed_text(toy, earlier)


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/completions", {"prompt": [5] * (MAX_MODEL_LEN + 1)}, "context_length_exceeded"),
        ("/v1/completions", {"prompt": PROMPT, "guided_regex": "a+"}, "StructuredOutputError"),
        ("/v1/embeddings", {"input": PROMPT}, "UnsupportedModelError"),
    ],
)
def test_what_it_refuses_is_told(server: Serving, path: str, body: dict[str, Any], code: str) -> None:
    answer = server.post(path, {"model": MODEL, **body})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_what_it_is_and_holds_is_told(server: Serving, toy: ToyBackend) -> None:
    assert server.get("/v1/models").json()["data"][0]["max_model_len"] == MAX_MODEL_LEN
    ids = server.post("/tokenize", {"prompt": PROMPT, "add_special_tokens": False}).json()["tokens"]
    assert ids == toy.texts.read(PROMPT).token_ids
    group = server.get("/v1/kv/status").json()["groups"][0]
    assert (group["name"], group["total"], group["free"]) == ("toy", 8, 8)
    assert server.get("/v1/kv/tree").json() == {"roots": [], "page_tokens": 16}
    identity = server.get("/v1/kv/identity").json()
    assert (identity["model"], identity["page_tokens"], identity["format"]) == ("toy", 16, "")
    pinned = server.post("/v1/kv/pin", {"model": MODEL, "prompt": PROMPT, "ttl_seconds": 60}).json()
    assert (pinned["granted"], pinned["tokens"]) == (False, len(ids))
    assert server.post("/reset_prefix_cache").json()["pages"] == 0
    metrics = server.get("/metrics").text
    assert 'pagoda:kv_pages{engine="0",format="none",group="toy",model_name="pagoda-tiny",state="free"} 8.0' in metrics


def test_one_that_has_ended_is_not_healthy(server: Serving, toy: ToyBackend) -> None:
    assert server.get("/health").json() == {"status": "ok"}
    toy.is_alive = False
    try:
        assert server.get("/health").status_code == 503
        refused = server.post("/v1/completions", {"model": MODEL, "prompt": PROMPT})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    finally:
        toy.is_alive = True
