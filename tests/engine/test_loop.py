"""The loop's thread, over an engine with nothing to do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pagoda import LLM, SamplingParams
from pagoda.engine.loop import EngineLoop
from pagoda.errors import EngineClosedError, RequestError


@pytest.fixture
def loop() -> Iterator[EngineLoop]:
    engine: Any = SimpleNamespace(has_work=False, close=lambda: None)
    loop = EngineLoop(engine, num_threads=None)
    yield loop
    loop.close()


def test_who_asks_and_goes_does_not_end_the_loop(loop: EngineLoop) -> None:
    may_go_on = threading.Event()
    running = loop.call(may_go_on.wait)
    left = loop.call(lambda: pytest.fail("nobody waits for this"))
    assert left.cancel()
    may_go_on.set()
    assert running.result(60)
    assert loop.call(lambda: "alive").result(60) == "alive"


def test_what_runs_is_not_cancelled(loop: EngineLoop) -> None:
    has_begun, may_go_on = threading.Event(), threading.Event()
    running = loop.call(lambda: has_begun.set() or may_go_on.wait())
    assert has_begun.wait(60)
    assert not running.cancel()
    may_go_on.set()
    assert running.result(60)
    assert loop.is_alive


def test_an_observer_that_fails_does_not_end_the_loop(loop: EngineLoop) -> None:
    loop.observe(lambda: 1 // 0)
    loop.call(lambda: loop._deliver([])).result(10)
    assert loop.call(lambda: "alive").result(10) == "alive"


def test_whoever_asks_a_closed_loop_gets_an_answer(loop: EngineLoop) -> None:
    loop.close()
    with pytest.raises(EngineClosedError):
        loop.call(lambda: None).result(10)
    with pytest.raises(EngineClosedError):
        loop.submit([], [])


def test_a_loop_that_is_closed_meanwhile_keeps_nobody_waiting(loop: EngineLoop, monkeypatch) -> None:
    call = loop.call
    monkeypatch.setattr(loop, "call", lambda function: loop.close() or call(function))
    with pytest.raises(EngineClosedError):
        loop.submit([], [])


def test_a_tokenizer_that_fails_ends_the_request() -> None:
    with LLM(num_threads=1) as llm:
        tokenizer = llm.tokenizer
        llm.tokenizer = SimpleNamespace(decode=lambda *_, **__: 1 // 0, all_special_ids=[])
        with pytest.raises(RequestError):
            llm.generate([5, 6], SamplingParams(max_tokens=2), use_tqdm=False)
        llm.tokenizer = tokenizer
        assert llm.generate([5, 6], SamplingParams(max_tokens=2), use_tqdm=False)
