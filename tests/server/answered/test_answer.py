"""How news of requests get from the engine's thread to those who wait, and what becomes of those not taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from pagoda.engine.request import FinishReason
from pagoda.errors import HttpError, MemoryFullError, OutOfPagesError, RequestError
from pagoda.outputs import StreamChunk
from pagoda.server.answered import answer as module
from pagoda.server.answered.answer import Answer, Outbox
from pagoda.server.ground.errors import failed


class Events:
    """An event loop that runs what it is handed at once, and counts how often that is."""

    def __init__(self) -> None:
        self.num_calls = 0

    def is_closed(self) -> bool:
        return False

    def call_soon_threadsafe(self, function: Callable[..., None], *arguments: Any) -> None:
        self.num_calls += 1
        function(*arguments)


def chunk(text: str, *, is_first: bool = False, ends: bool = False) -> StreamChunk:
    reason = FinishReason.LENGTH if ends else None
    return StreamChunk(0, text, [ord(each) for each in text], reason, None, is_first=is_first)


def new_answer() -> Answer:
    return Answer([None], cancel=lambda: None, on_end=lambda _: None)  # type: ignore[list-item]


def test_tokens_cross_over_together_but_the_first_and_the_last_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now, events, answer = [100.0], Events(), new_answer()
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    outbox = Outbox(events, interval_seconds=0.02)  # type: ignore[arg-type]
    calls = []
    for news in (chunk("a", is_first=True), *map(chunk, "bcdef"), chunk("g", ends=True)):
        outbox.put(answer, 0, news)
        outbox.flush()
        calls.append(events.num_calls)
        now[0] += 0.009
    assert calls == [1, 1, 1, 2, 2, 2, 3]
    ((news,),) = answer._pending.values()
    assert (news.text, news.token_ids) == ("abcdefg", [ord(each) for each in "abcdefg"])
    assert news.finish_reason is FinishReason.LENGTH


def test_news_that_nobody_takes_are_merged_and_given_before_an_error() -> None:
    texts: list[str] = []

    async def read() -> None:
        answer = new_answer()
        for news in (chunk("a"), chunk("b"), RequestError("broken"), chunk("too late")):
            answer.put(0, news)
        async for taken in answer:
            texts.extend(each.text for _, each in taken)

    with pytest.raises(HttpError, match="broken"):
        asyncio.run(read())
    assert texts == ["ab"]


def test_why_a_request_failed_decides_the_status() -> None:
    wrapped = RequestError("no pages")
    wrapped.__cause__ = OutOfPagesError("no pages")
    assert failed(wrapped).status == 503
    assert failed(RequestError("the model broke")).status == 500
    assert failed(HttpError(504, "late")).status == 504
    rejected = failed(MemoryFullError("pages ran short"))
    assert (rejected.status, rejected.code, rejected.retry_after_seconds) == (503, "memory_full", 1)


def test_what_comes_while_the_last_news_are_sent_is_given_before_an_error() -> None:
    texts: list[str] = []

    async def read() -> None:
        answer = new_answer()
        answer.put(0, chunk("a"))
        async for taken in answer:
            texts.extend(each.text for _, each in taken)
            answer.put(0, chunk("b"))
            answer.put(0, RequestError("broken"))

    with pytest.raises(HttpError, match="broken"):
        asyncio.run(read())
    assert texts == ["a", "b"]


def test_much_that_has_gathered_is_given_in_portions_between_which_others_have_their_turn() -> None:
    text, turns = "".join(chr(ord("a") + number % 26) for number in range(5 * module.MOST_TOKENS_AT_ONCE)), [0]

    async def other() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    async def read() -> list[tuple[int, str]]:
        answer, task = new_answer(), asyncio.ensure_future(other())
        for letter in text[:-1]:
            answer.put(0, chunk(letter))
        answer.put(0, RequestError("broken"))
        taken = []
        with suppress(HttpError):
            async for portion in answer:
                assert sum(len(each.token_ids) for _, each in portion) <= module.MOST_TOKENS_AT_ONCE
                taken.append((turns[0], "".join(each.text for _, each in portion)))
        task.cancel()
        return taken

    taken = asyncio.run(read())
    assert "".join(piece for _, piece in taken) == text[:-1]
    assert len({turn for turn, _ in taken}) == len(taken) == 5
