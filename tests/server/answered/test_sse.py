"""Streams that have nothing to say for a while: each API's clients are told that somebody is there."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import anthropic
import httpx2
import openai
import pytest

from pagoda.server.answered import answer, sse
from server.running import MODEL, MOST_SECONDS, Running

QUIET_SECONDS = 0.02
CHAT = {"max_tokens": 2, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "QUIET_SECONDS", QUIET_SECONDS)
    monkeypatch.setattr(sse, "SILENT_SECONDS", QUIET_SECONDS)


@contextmanager
def busy(server: Running) -> Iterator[threading.Event]:
    """The engine does something else until the event is set."""
    done = threading.Event()
    server.llm.loop.call(lambda: done.wait(MOST_SECONDS))
    try:
        yield done
    finally:
        done.set()


@pytest.mark.parametrize(
    ("path", "body", "beat"),
    [
        ("/v1/chat/completions", CHAT, ": nothing new yet"),
        ("/v1/completions", {"prompt": "Hello", "max_tokens": 2}, ": nothing new yet"),
        ("/v1/messages", CHAT, "event: ping"),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 2}, "event: response.in_progress"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_stream_that_waits_is_not_silent(server: Running, path: str, body: dict, beat: str) -> None:
    body = {"model": MODEL, "stream": True} | body
    lines = []
    with busy(server) as done, httpx2.stream("POST", server.url + path, json=body, timeout=MOST_SECONDS) as response:
        for line in response.iter_lines():
            lines.append(line)
            if lines.count(beat) > 2:
                done.set()
    assert done.is_set()
    numbers = [json.loads(line[6:]).get("sequence_number") for line in lines if line.startswith("data: {")]
    assert numbers in (list(range(len(numbers))), [None] * len(numbers))


@pytest.mark.usefixtures("impatient")
def test_clients_read_over_it(server: Running) -> None:
    with busy(server) as done, openai.OpenAI(base_url=server.url + "/v1", api_key="x") as client:
        threading.Timer(0.3, done.set).start()
        chunks = list(client.chat.completions.create(model=MODEL, stream=True, **CHAT))
        assert chunks[-1].choices[0].finish_reason
    with busy(server) as done, openai.OpenAI(base_url=server.url + "/v1", api_key="x") as client:
        threading.Timer(0.3, done.set).start()
        events = list(client.responses.create(model=MODEL, input="Hello", max_output_tokens=2, stream=True))
        assert events[-1].type == "response.incomplete"
    with busy(server) as done, anthropic.Anthropic(base_url=server.url, api_key="x") as client:
        threading.Timer(0.3, done.set).start()
        with client.messages.stream(model=MODEL, **CHAT) as stream:
            assert stream.get_final_text()


def test_events_that_say_nothing_are_left_out_until_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(sse, "monotonic", lambda: now)

    async def events() -> AsyncIterator[bytes]:
        nonlocal now
        for event in (b"a", b"", b"", b"b", b"", b""):
            yield event
            now += sse.SILENT_SECONDS / 2

    async def read() -> list[bytes]:
        return [event async for event in sse._audible(events(), lambda: b"beat")]

    assert asyncio.run(read()) == [b"a", b"beat", b"b", b"beat"]


def test_whoever_reads_an_answer_is_told_that_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "QUIET_SECONDS", QUIET_SECONDS)

    async def read() -> float:
        news, began = answer.Answer([None], lambda: None, lambda _: None).__aiter__(), time.monotonic()
        assert [await anext(news) for _ in range(3)] == [[], [], []]
        return time.monotonic() - began

    assert asyncio.run(read()) >= 3 * QUIET_SECONDS
