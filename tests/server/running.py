"""A server on a loopback port, in a thread of the test's own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import httpx2

from pagoda import LLM
from pagoda.server.accepted.service import Service
from pagoda.server.backend.base import Backend
from pagoda.server.backend.local import LocalBackend
from pagoda.server.entrance.listener import listen
from pagoda.server.ground.options import ServerOptions
from pagoda.server.ground.tenants import Tenants
from pagoda.server.run import Server

MODEL = "pagoda-tiny"
TENANTS = """
[tenants.a]
api_key = "a"
[tenants.b]
api_key = "b"
[tenants.operator]
api_key = "operator"
is_admin = true
"""
MOST_SECONDS = 120  # that anything takes: machines are busy, and may stand still for a while
STEP_SECONDS = 0.05


@dataclass
class Serving:
    """A server, its service, and where it listens."""

    service: Service
    url: str
    server: Server

    def post(self, path: str, body: Any = None, **more: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, timeout=MOST_SECONDS, **more)

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return httpx2.get(self.url + path, timeout=MOST_SECONDS, **more)

    def patch(self, path: str, body: Any, **more: Any) -> httpx2.Response:
        return httpx2.patch(self.url + path, json=body, timeout=MOST_SECONDS, **more)

    def delete(self, path: str, **more: Any) -> httpx2.Response:
        return httpx2.delete(self.url + path, timeout=MOST_SECONDS, **more)


@dataclass
class Running(Serving):
    """One over a model in this process."""

    llm: LLM

    def wait_until_idle(self) -> None:
        """Until no request is in flight and no page in use."""
        wait_until(lambda: not (self.service.in_flight or pages_in_use(self.llm)))
        self.llm.check_integrity()


def pages_in_use(llm: LLM) -> int:
    return sum(group.open + group.in_use for group in llm.cache_stats().groups)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + MOST_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.005)


@contextmanager
def unhurried(llm: LLM) -> Iterator[None]:
    """Steps take a while, so that a request of thousands of tokens lasts minutes on any machine."""
    stop = llm.loop.observe(lambda: time.sleep(STEP_SECONDS))
    try:
        yield
    finally:
        stop()


class ServerInThread(Server):
    """Signals go to the main thread, which is the tests'."""

    capture_signals = nullcontext


@contextmanager
def serving(backend: Backend, **options: Any) -> Iterator[Serving]:
    settings = ServerOptions(**{"port": 0, "drain_timeout_seconds": 5, **options})
    tenants, listener = Tenants(settings), listen(settings)
    service = Service(backend, settings, tenants, MODEL)
    server = ServerInThread(service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server could not start"
            time.sleep(0.01)
        yield Serving(service, f"http://127.0.0.1:{listener.getsockname()[1]}", server)
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def running(llm: LLM, **options: Any) -> Iterator[Running]:
    with serving(LocalBackend(llm), **options) as served:
        yield Running(served.service, served.url, served.server, llm)
