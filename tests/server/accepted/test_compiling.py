"""What takes long to compile holds up nobody but its own tenant, and ends when nobody wants it."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from pagoda import LLM, StructuredOutputs
from pagoda.errors import HttpError, RequestCancelledError, StructuredOutputError
from pagoda.server.accepted.compiling import MOST_WAITING, Compiling
from pagoda.structured import compiler as compilers
from processes import Forked
from server.running import MODEL, MOST_SECONDS, Running, running, wait_until

FORM = StructuredOutputs(regex="a")
BOMB = {"allOf": [{"type": "string", "pattern": rf"(a|b)*a(a|b){{{number}}}"} for number in range(10, 34)]}
SMALL = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


class Grammars:
    """Compiles what tenants whose names begin with "s" want only when nobody wants it any longer."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.given_up: list[str] = []

    def compile(self, form: StructuredOutputs, tenant: str, is_wanted: Callable[[], bool]) -> str:
        self.started.append(tenant)
        while tenant.startswith("s"):
            if not is_wanted():
                self.given_up.append(tenant)
                raise RequestCancelledError("not wanted")
            time.sleep(0.002)
        if tenant == "wrong":
            raise StructuredOutputError("no grammar")
        return f"of {tenant}"


async def for_ever() -> None:
    await asyncio.Event().wait()


def run(body: Callable[[Compiling, Grammars], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        grammars = Grammars()
        compiling = Compiling(grammars)  # type: ignore[arg-type]
        try:
            await asyncio.wait_for(body(compiling, grammars), MOST_SECONDS)
        finally:
            compiling.close()

    asyncio.run(main())


def start(
    compiling: Compiling,
    tenant: str,
    gone: Callable[[], Awaitable[None]] = for_ever,
    seconds: float | None = None,
) -> asyncio.Future[Any]:
    return asyncio.ensure_future(compiling.compile(FORM, tenant, gone, seconds))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


async def refusal(answer: asyncio.Future[Any]) -> int:
    with pytest.raises(HttpError) as refused:
        await answer
    return refused.value.status


def test_a_tenant_waits_for_itself_alone() -> None:
    async def body(compiling: Compiling, grammars: Grammars) -> None:
        slow = [start(compiling, "slow") for _ in range(5)]
        await until(lambda: grammars.started)
        assert await start(compiling, "quick") == "of quick"
        with pytest.raises(StructuredOutputError):
            await start(compiling, "wrong")
        assert await start(compiling, "quick") == "of quick"
        assert grammars.started.count("slow") == 1
        assert not any(each.done() for each in slow)
        compiling.close()
        assert {await refusal(each) for each in slow} == {503}

    run(body)


def test_as_many_as_wait_have_a_limit() -> None:
    async def body(compiling: Compiling, grammars: Grammars) -> None:
        waiting = [start(compiling, "slow") for _ in range(MOST_WAITING)]
        await until(lambda: grammars.started)
        assert await refusal(start(compiling, "slow")) == 429
        assert await start(compiling, "quick") == "of quick"
        compiling.close()
        assert {await refusal(each) for each in waiting} == {503}

    run(body)


def test_a_client_that_goes_gives_its_place_to_the_next() -> None:
    async def body(compiling: Compiling, grammars: Grammars) -> None:
        gone = asyncio.Event()

        async def until_gone() -> None:
            await gone.wait()

        first, second = start(compiling, "slow", until_gone), start(compiling, "slow", until_gone)
        third = start(compiling, "slow")
        await until(lambda: grammars.started)
        gone.set()
        assert [await refusal(first), await refusal(second)] == [499, 499]
        await until(lambda: grammars.given_up and len(grammars.started) == 2)
        assert not third.done()
        compiling.close()
        assert await refusal(third) == 503

    run(body)


def test_an_answer_that_is_too_late_is_given_up() -> None:
    async def body(compiling: Compiling, grammars: Grammars) -> None:
        late = [start(compiling, "slow", seconds=0.05) for _ in range(2)]
        assert {await refusal(each) for each in late} == {504}
        await until(lambda: grammars.given_up)

    run(body)


def test_nothing_is_compiled_any_more_when_the_server_shuts_down() -> None:
    async def body(compiling: Compiling, grammars: Grammars) -> None:
        compiling.close()
        assert await refusal(start(compiling, "quick")) == 503
        assert not grammars.started

    run(body)


def body_of(schema: dict[str, Any] | None, name: str = "form") -> dict[str, Any]:
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 60}
    if schema is not None:
        schema = schema | {"description": name}
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}
    return body


def post(server: Running, tenant: str, schema: dict[str, Any] | None, name: str = "form") -> httpx2.Response:
    headers = {"authorization": f"Bearer {tenant}"}
    return server.post("/v1/chat/completions", body_of(schema, name), headers=headers)


@pytest.fixture
def tenants(tmp_path: Path) -> Path:
    file = tmp_path / "tenants.toml"
    file.write_text('[tenants.good]\napi_key = "good"\n[tenants.evil]\napi_key = "evil"\n')
    return file


def is_compiling(llm: LLM) -> bool:
    with suppress(psutil.NoSuchProcess):  # one that ends while it is looked at
        return any(child.status() == psutil.STATUS_RUNNING for child in psutil.Process().children())
    return False


def test_a_bomb_keeps_no_other_tenant_waiting(llm: LLM, tenants: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "COMPILE_SECONDS", MOST_SECONDS)
    with running(llm, tenants=tenants) as server, ThreadPoolExecutor() as threads:
        bombs = [threads.submit(post, server, "evil", BOMB, f"wait {number}") for number in range(3)]
        wait_until(lambda: is_compiling(llm))
        for number in range(3):
            assert post(server, "good", None).status_code == 200
            assert post(server, "good", SMALL, f"another {number}").status_code == 200
            assert post(server, "evil", None).status_code == 200
        assert not any(bomb.done() for bomb in bombs)
        server.service.drain()
        assert {bomb.result().status_code for bomb in bombs} == {503}


def test_a_bomb_is_refused(llm: LLM, tenants: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "COMPILE_SECONDS", 0.3)
    with running(llm, tenants=tenants) as server:
        for _ in range(2):
            refused = post(server, "evil", BOMB, "refused")
            assert refused.status_code == 400
            error = refused.json()["error"]
            assert (error["code"], error["param"]) == ("StructuredOutputError", "response_format")
            assert "simpler form" in error["message"]
            assert post(server, "good", SMALL).status_code == 200


def test_a_client_that_goes_ends_what_is_compiled_for_it(
    llm: LLM, tenants: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilers, "COMPILE_SECONDS", MOST_SECONDS)
    with running(llm, tenants=tenants) as server:
        assert post(server, "good", SMALL).status_code == 200
        headers = {"authorization": "Bearer evil"}
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(server.url + "/v1/chat/completions", json=body_of(BOMB, "goes"), headers=headers, timeout=1.0)
        wait_until(lambda: not is_compiling(llm))
        headers["x-request-timeout"] = "0.5"
        late = server.post("/v1/chat/completions", body_of(BOMB, "late"), headers=headers)
        assert late.status_code == 504
        wait_until(lambda: not is_compiling(llm))


SERVE = """
import sys
from pagoda.cli import main
from pagoda.structured import compiler
compiler.COMPILE_SECONDS = 600
sys.exit(main())
"""


def test_sigterm_ends_a_server_that_compiles_a_bomb() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["serve", "--port", str(port), "--kv-cache-memory-bytes", "32MiB", "--num-threads", "1"]
    process = Forked(*arguments, script=SERVE, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Serving")
        reader = threading.Thread(target=process.stderr.read)
        reader.start()
        with ThreadPoolExecutor() as threads:
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            bombs = [
                threads.submit(httpx2.post, url, json=body_of(BOMB, f"sigterm {number}"), timeout=MOST_SECONDS)
                for number in range(3)
            ]
            wait_until(lambda: psutil.Process(process.pid).children())
            time.sleep(0.5)
            children = psutil.Process(process.pid).children()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=MOST_SECONDS) == 0
            assert {bomb.result().status_code for bomb in bombs} == {503}
        reader.join()
        assert not any(child.is_running() for child in children)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
