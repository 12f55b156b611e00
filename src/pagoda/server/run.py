"""Runs the server until it is told to stop, and then lets requests in flight finish."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from pagoda.server.app import create_app
from pagoda.server.service import Service

LAST_SECONDS = 10  # for what was cut to be written, on a machine that may stand still for some of them


class Server(uvicorn.Server):
    """uvicorn, which drains the service first: a second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self._service.cut()
        self._service.drain()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cut = asyncio.get_running_loop().call_later(self._service.options.drain_timeout_seconds, self._service.cut)
        await super().shutdown(sockets)
        cut.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the process goes on after it, to close the engine and end with status 0."""
        events = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            events.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                events.remove_signal_handler(number)


def serve(service: Service, listener: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        create_app(service),
        http="httptools",
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(service.options.drain_timeout_seconds) + LAST_SECONDS,
    )
    # What is loaded by now stays: without looking through it again and again, collecting garbage is quick.
    gc.collect()
    gc.freeze()
    Server(config, service).run(sockets=[listener])
