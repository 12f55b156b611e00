"""A server on a loopback port, in a thread of the test's own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn

from pagoda import LLM
from pagoda.server.app import create_app
from pagoda.server.listener import listen
from pagoda.server.options import ServerOptions
from pagoda.server.service import Service
from pagoda.server.tenants import Tenants

MODEL = "pagoda-tiny"


@dataclass
class Running:
    """A server, its service, and where it listens."""

    service: Service
    url: str
    server: uvicorn.Server

    @property
    def llm(self) -> LLM:
        return self.service.llm

    def post(self, path: str, body: Any = None, **more: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, timeout=60, **more)

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return httpx2.get(self.url + path, timeout=60, **more)

    def wait_until_idle(self) -> None:
        """Until no request is in flight and no page in use."""
        deadline = time.monotonic() + 30
        while self.service.in_flight or pages_in_use(self.llm):
            assert time.monotonic() < deadline, "requests are still in flight"
            time.sleep(0.005)
        self.llm.check_integrity()


def pages_in_use(llm: LLM) -> int:
    return sum(group.open + group.in_use for group in llm.cache_stats().groups)


@contextmanager
def running(llm: LLM, **options: Any) -> Iterator[Running]:
    settings = ServerOptions(**{"port": 0, **options})
    tenants, listener = Tenants(settings), listen(settings)
    service = Service(llm, settings, tenants, MODEL)
    config = uvicorn.Config(
        create_app(service), http="httptools", loop="uvloop", log_config=None, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Running(service, f"http://127.0.0.1:{listener.getsockname()[1]}", server)
    finally:
        server.should_exit = True
        thread.join()
