"""Runs the server until it is told to stop, and then lets requests in flight finish."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from pagoda.server.accepted.service import Service
from pagoda.server.app import create_app
from pagoda.server.deadline import end_within
from pagoda.server.entrance.connection import Connection
from pagoda.server.entrance.connections import Connections
from pagoda.server.entrance.descriptors import room_for_connections

WRITE_SECONDS = 3  # for what was cut to be written, on a machine that may stand still for some of them
GARBAGE_THRESHOLD = 50_000  # new objects
LAST_SECONDS = 8.0  # after what is in flight was cut: whatever goes on then hangs


class Server(uvicorn.Server):
    """uvicorn, which drains the service first: a second signal ends it at once."""

    def __init__(self, service: Service) -> None:
        room = room_for_connections(service.options.max_connections)
        self.connections = Connections(service.options, room, service.tenants.are_several)
        super().__init__(_config(service, self.connections))
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self._cut()
        self._service.drain()
        super().handle_exit(sig, frame)

    def _on_signal(self, events: asyncio.AbstractEventLoop, number: int) -> None:
        """Between any two steps of the main thread, so that it counts whatever the event loop does."""
        patience = 0.0 if self.should_exit else self._service.options.drain_timeout_seconds
        end_within(patience + LAST_SECONDS)
        events.call_soon_threadsafe(self.handle_exit, number, None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cut = asyncio.get_running_loop().call_later(self._service.options.drain_timeout_seconds, self._cut)
        await super().shutdown(sockets)
        cut.cancel()

    def _cut(self) -> None:
        """End what is in flight: those who wait are told, and those who do not read what they are told are left."""
        self._service.cut()
        asyncio.get_running_loop().call_later(WRITE_SECONDS, self.connections.abort)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the process goes on after it, to close the engine and end with status 0."""
        events = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, lambda number, _: self._on_signal(events, number)) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def serve(service: Service, listener: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM."""
    server = Server(service)
    # What is loaded by now stays: without looking through it again and again, collecting garbage is quick. A large body
    # would still have all others looked through again and again while it is read.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    try:
        server.run(sockets=[listener])
    finally:
        gc.unfreeze()  # or the compiled module would be told of at exit as still in use


def _config(service: Service, connections: Connections) -> uvicorn.Config:
    protocol: Any = partial(Connection, connections)
    return uvicorn.Config(
        create_app(service),
        http=protocol,
        ws="none",
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=service.options.keep_alive_timeout_seconds,
        timeout_graceful_shutdown=int(service.options.drain_timeout_seconds) + 2 * WRITE_SECONDS,
    )
