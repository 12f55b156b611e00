"""How many connections there may be, and which of them go when there are more."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path

import pytest

from pagoda import LLM
from pagoda.errors import HttpError
from pagoda.server.entrance.connections import Connections
from pagoda.server.ground.options import ServerOptions
from pagoda.server.ground.tenants import Tenant
from server.process import Process
from server.raw import Client, head, status
from server.running import MOST_SECONDS, running, wait_until

ALICE, BOB = Tenant("alice"), Tenant("bob")
LIMITS = """
import resource
from pagoda.server.entrance.descriptors import room_for_connections
resource.setrlimit(resource.RLIMIT_NOFILE, (70, 200))
rooms = [room_for_connections(wanted) for wanted in (10, 1000)]
print(*rooms, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


class Socket:
    """A connection that is only counted."""

    def __init__(self, connections: Connections) -> None:
        self.is_open = True
        self._connections = connections
        connections.add(self)

    def check(self, now: float) -> None:
        pass

    def end(self) -> None:
        self.is_open = False


def run(main: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(main, MOST_SECONDS))


def test_the_oldest_that_nobody_was_let_in_on_goes() -> None:
    async def main() -> None:
        connections = Connections(ServerOptions(), 4, has_tenants=True)
        first, second, third, fourth = (Socket(connections) for _ in range(4))
        connections.let_in(first, ALICE)
        connections.let_in(second, ALICE)
        connections.let_out(second)
        Socket(connections)
        assert [each.is_open for each in (first, second, third, fourth)] == [True, True, False, True]
        Socket(connections)
        Socket(connections)
        assert [each.is_open for each in (first, second, fourth)] == [True, False, False]
        assert len(connections) == 4

    run(main())


def test_some_are_kept_for_those_who_come() -> None:
    async def main() -> None:
        connections = Connections(ServerOptions(), 8, has_tenants=False)
        for _ in range(7):
            connections.let_in(Socket(connections), ALICE)
        with pytest.raises(HttpError) as refused:
            connections.let_in(Socket(connections), ALICE)
        assert (refused.value.status, refused.value.retry_after_seconds) == (503, 1)

    run(main())


def test_who_has_most_makes_room_for_another() -> None:
    async def main() -> None:
        connections = Connections(ServerOptions(), 8, has_tenants=True)
        alices = [Socket(connections) for _ in range(7)]
        for each in alices:
            connections.let_in(each, ALICE)
        bobs = [Socket(connections) for _ in range(4)]
        for each in bobs[:3]:
            connections.let_in(each, BOB)
        assert [each.is_open for each in alices] == [True] * 4 + [False] * 3
        for tenant in (ALICE, BOB):
            with pytest.raises(HttpError):
                connections.let_in(bobs[3], tenant)

    run(main())


def test_why_they_go_is_said_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        connections = Connections(ServerOptions(), 2, has_tenants=False)
        for _ in range(100):
            Socket(connections)

    run(main())
    (message,) = caplog.messages
    assert "there are more than 2" in message
    assert caplog.records[0].levelno == logging.WARNING


def test_the_limit_of_open_files_is_raised_and_heeded() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITS], capture_output=True, text=True, check=True)
    small, large, limit = map(int, done.stdout.split())
    assert (small, limit) == (10, 200)
    assert 100 < large < 170
    assert f"At most {large} connections, of 1000" in done.stderr


def test_half_requests_keep_nobody_from_being_served() -> None:
    with Process(ulimit=128) as server:
        held = []
        try:
            for _ in range(3):
                for _ in range(100):
                    held.append(Client(server.url))
                    held[-1].send(b"GET / HTTP/1.1\r\n")
                with Client(server.url) as client:
                    client.send(head("GET", "/health", "Connection: close"))
                    assert status(client.receive()) == 200
        finally:
            for each in held:
                each.__exit__()


def test_one_tenant_cannot_have_all_connections(llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text('[tenants.alice]\napi_key = "one"\n[tenants.bob]\napi_key = "two"\n')
    with running(llm, tenants=file, max_connections=8) as server:
        held = [Client(server.url) for _ in range(7)]
        for each in held:
            each.send(head("GET", "/v1/kv/events", "X-Api-Key: one"))
            assert status(each.receive_some()) == 200
        with Client(server.url) as client:
            client.send(head("GET", "/v1/kv/events", "X-Api-Key: one"))
            assert status(client.receive_some()) == 503
        assert server.get("/v1/models", headers={"x-api-key": "two"}).status_code == 200
        for each in held:
            each.__exit__()
        wait_until(lambda: not len(server.server.connections))
