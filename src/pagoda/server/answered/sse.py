"""Writes server-sent events: a response that is sent as it comes, and ends with its client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from pagoda.errors import HttpError
from pagoda.outputs import RequestOutput
from pagoda.server.answered.answer import Answer
from pagoda.server.ground.jsons import to_json

logger = logging.getLogger(__name__)

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
DONE = b"data: [DONE]\n\n"
COMMENT = b": nothing new yet\n\n"
SILENT_SECONDS = 6.0  # that a stream may be without an event, so that nobody takes it for dead


def data(value: Any) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def named(value: Any) -> bytes:
    """An event named as its type."""
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + to_json(value) + b"\n\n"


class EventStream(StreamingResponse):
    """Writes `events`; whatever ends it, also a client that has gone, cancels what is left of `answer`.

    An event may be empty; `beat` writes one where there was none for a while. `on_error` writes an error that comes
    after the first event.
    """

    def __init__(
        self,
        answer: Answer,
        events: AsyncIterator[bytes],
        on_error: Callable[[HttpError], bytes],
        beat: Callable[[], bytes] = lambda: COMMENT,
    ) -> None:
        guarded = _guarded(_audible(events, beat), on_error)
        super().__init__(guarded, headers=HEADERS, media_type="text/event-stream")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


async def _audible(events: AsyncIterator[bytes], beat: Callable[[], bytes]) -> AsyncIterator[bytes]:
    """The events that are not empty, and a `beat` where there were only such for a while."""
    last = monotonic()
    async for event in events:
        if not event and monotonic() - last >= SILENT_SECONDS:
            event = beat()  # noqa: PLW2901 - in its place
        if event:
            last = monotonic()
            yield event


async def _guarded(events: AsyncIterator[bytes], on_error: Callable[[HttpError], bytes]) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield event
    except HttpError as error:
        yield on_error(error)
    except Exception:
        logger.exception("A stream failed")
        yield on_error(HttpError(500, "The server failed while it wrote the answer."))


async def until_gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def finish(answer: Answer, request: Request) -> list[RequestOutput]:
    """The outputs of an answer that is not streamed. A client that goes away cancels it, and nobody is answered.

    Raises HttpError if a job fails.
    """
    wanted = asyncio.ensure_future(answer.wait())
    gone = asyncio.ensure_future(until_gone(request))
    try:
        await asyncio.wait((wanted, gone), return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            answer.cancel()
        return await wanted
    finally:
        answer.cancel()
        gone.cancel()
