"""Bounds one HTTP connection: what a client may send before it has said who it is, and how long it may take.

uvicorn's own bounds nothing but how long a connection may be idle: headers grow and requests queue up without end, and
a client that sends or reads nothing more is waited for. This one adds bounds; uvicorn still reads and answers requests.
What connections may have together is said by `Connections`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import httptools
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from pagoda.errors import HttpError
from pagoda.server.entrance.arrival import Arrival
from pagoda.server.entrance.connections import Connections
from pagoda.server.ground.errors import error_body
from pagoda.server.ground.jsons import to_json
from pagoda.server.ground.tenants import Tenant

MOST_PIPELINED = 8  # requests that are read while one is answered
FIELD_FRAME_NBYTES = 4  # a colon, a space, the end of a line
LEAST_READ_NBYTES_PER_SECOND = 32 << 10
# Before what is no request is answered: who sends it again and again would keep the event loop busy.
REFUSAL_SECONDS = 0.1


class Connection(HttpToolsProtocol):
    """uvicorn's connection with bounds; `connections` knows it from when it is made until it is lost."""

    def __init__(
        self,
        connections: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._connections = connections
        self._arrival: Arrival | None = None  # of what comes next; idle connections have none
        self._has_ended = False  # a request, since bytes came last
        self._cycles: deque[RequestResponseCycle] = deque()  # requests without an answer, the first being answered
        self._read_due: float | None = None  # when what is being sent must have been read
        self._end_due: float | None = None  # when it must be closed, whatever the client does
        self._is_refused = False  # nothing more is read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arrival = Arrival(self.loop.time())
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._leave()
        self._connections.remove(self)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self._is_refused:
            return
        self._unset_keepalive_if_required()
        arrival = self._arrival = self._arrival or Arrival(self.loop.time())
        was_head, self._has_ended = arrival.is_head, False
        try:
            self._feed(data)
            if not self._has_ended and arrival.is_head == was_head:
                arrival.add_received(len(data))
        except HttpError as error:
            self._is_refused = True
            if self._cycles:
                self.refuse(error)
                return
            self.transport.pause_reading()
            self.loop.call_later(REFUSAL_SECONDS, self.refuse, error)

    def _feed(self, data: bytes) -> None:
        """Raises HttpError for what is no HTTP, or more of it than anybody needs."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # the answer is HTTP/1.1, as clients that offer another must expect
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, HttpError):
                raise error.__context__ from None
            raise HttpError(400, "This is not HTTP/1.1.") from error

    def on_message_begin(self) -> None:
        if len(self._cycles) > MOST_PIPELINED:
            raise HttpError(400, f"More than {MOST_PIPELINED} requests came before their answers; wait for some.")
        super().on_message_begin()
        self.scope["state"]["let_in"] = self.let_in
        self._arrival = self._arrival or Arrival(self.loop.time())

    def on_url(self, url: bytes) -> None:
        self._coming.add_field(len(url) + FIELD_FRAME_NBYTES)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._coming.add_field(len(name) + len(value) + FIELD_FRAME_NBYTES)
        if self._coming.is_head:  # nobody reads trailers, and headers that come late are none
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() == "1.1" and [name for name, _ in self.headers].count(b"host") != 1:
            raise HttpError(400, "HTTP/1.1 needs the header Host, once; send it.")
        self._coming.begin_body(self.loop.time())
        super().on_headers_complete()
        self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._coming.add_body(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_ended, self._end_due = True, None
        # An answer that was there before the end of the request starts no idle time any more.
        self._arrival = None if self._cycles else Arrival(self.loop.time())
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._connections.let_out(self)
        self._cycles.popleft()
        super().on_response_complete()
        if self._arrival is not None:
            now = self.loop.time()
            self._arrival.was_kept_waiting(now)
            if not (self._arrival.is_head or self._cycles):
                self._end_due = now + self._connections.receive_seconds  # nobody wants the rest of the body

    def pause_writing(self) -> None:
        super().pause_writing()
        nbytes = self.transport.get_write_buffer_size()
        self._read_due = self.loop.time() + self._connections.send_seconds + nbytes / LEAST_READ_NBYTES_PER_SECOND

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_due = None

    def let_in(self, tenant: Tenant) -> None:
        """The request in flight is this tenant's. Raises HttpError 503 if it may have no more connections."""
        self._connections.let_in(self, tenant)

    def check(self, now: float) -> None:
        if self.transport.is_closing() and self._end_due is None:
            self._end_due = now + self._connections.send_seconds
        if any(due is not None and now > due for due in (self._end_due, self._read_due)):
            self._connections.note("a client did not read its answer, or sent what nobody wanted")
            self.end()
        elif self._arrival is not None and self._waits and now > self._arrival.due(self._connections.receive_seconds):
            self._connections.note("a client did not send its request in time")
            self.refuse(HttpError(408, "The request did not come in time."))

    def end(self) -> None:
        """Close it at once."""
        self._leave()
        self.transport.abort()

    def refuse(self, error: HttpError) -> None:
        """Answer with `error`, unless another answer has begun, and close."""
        if self.transport.is_closing():
            return
        if len(self._cycles) > 1 or any(cycle.response_started for cycle in self._cycles):
            self.end()
            return
        self._leave()
        body = to_json(error_body("", error, ""))
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()

    def _leave(self) -> None:
        """Tell those who answer that nobody listens. uvicorn tells the last of them alone."""
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()

    @property
    def _coming(self) -> Arrival:
        assert self._arrival is not None, "fields and bodies come between the begin of a request and its end"
        return self._arrival

    @property
    def _waits(self) -> bool:
        """Whether it is the client's turn."""
        return not self._cycles or (len(self._cycles) == 1 and not self._coming.is_head)
