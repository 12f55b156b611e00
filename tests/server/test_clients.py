"""Replays of what real clients send: accepted, answered as their APIs say, and cached for the next session."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.client_shapes import CLIENT_SHAPES, ClientShape
from server.running import Running

FIRST, SECOND = "What day is it?", "And which month?"
OPENING_TOKENS = 24  # of what surrounds a question in a template


def asked(server: Running, shape: ClientShape, session: str, question: str, is_second: bool) -> dict[str, Any]:
    """The usage that the answer ends with; the events of a stream are those of its API."""
    body = shape.ask(session, question, is_second)
    answer = server.post(shape.path, body, headers=shape.headers)
    assert answer.status_code == 200, answer.text
    if not body.get("stream"):
        return dict(answer.json()["usage"])
    lines = [line for line in answer.text.split("\n") if line]
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    if shape.path.startswith("/v1/messages"):
        kinds = [event["type"] for event in events]
        assert kinds[0] == "message_start"
        assert kinds[-2:] == ["message_delta", "message_stop"]
        return dict(events[-2]["usage"])
    if shape.path == "/v1/responses":
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["type"] in ("response.completed", "response.incomplete")
        return dict(events[-1]["response"]["usage"])
    assert lines[-1] == "data: [DONE]"
    assert [event["choices"][0]["finish_reason"] for event in events if event["choices"]][-1]
    return dict(events[-1]["usage"])


def counts(usage: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt, and those that were cached."""
    if "cache_read_input_tokens" in usage:
        read = usage["cache_read_input_tokens"]
        return usage["input_tokens"] + usage["cache_creation_input_tokens"] + read, read
    details = usage.get("prompt_tokens_details") or usage["input_tokens_details"]
    return usage.get("prompt_tokens") or usage["input_tokens"], details["cached_tokens"]


@pytest.mark.parametrize("shape", CLIENT_SHAPES, ids=lambda shape: shape.name)
def test_sessions_of_a_client(server: Running, shape: ClientShape) -> None:
    first, cached = counts(asked(server, shape, "a1", FIRST, is_second=False))
    assert cached < OPENING_TOKENS
    second, cached = counts(asked(server, shape, "a1", FIRST, is_second=True))
    assert second > first
    assert cached >= first - 2
    other, cached = counts(asked(server, shape, "b2", SECOND, is_second=False))
    assert other > 300
    assert other - cached < OPENING_TOKENS
