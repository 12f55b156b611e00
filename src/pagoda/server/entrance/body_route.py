"""Reads the bodies of routes in place of FastAPI, which reads and checks whatever comes on the event loop.

A large body is read on a thread, in its tenant's turn; and none that has more values than anybody needs. Handlers get
what they would get from FastAPI, and what is wrong with a body is told in the same words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pagoda.errors import HttpError
from pagoda.server.accepted.wire import tenant_of
from pagoda.server.asked.json_shape import check_shape
from pagoda.server.asked.leniency import HEADER, IgnoredLog, Leniency
from pagoda.server.asked.reader import Reader
from pagoda.server.entrance.body_kind import check_kind
from pagoda.server.ground.errors import client_gone

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

JSON_KIND = (b"content-type", b"application/json")
SMALL_NBYTES = 64 << 10  # what takes some milliseconds at most
MOST_PYTHON_NBYTES = 1 << 20  # read by Python's own reader, in which time no other thread moves


def body_route(reader: Reader, is_strict: bool) -> type[APIRoute]:
    """The kind of route that reads bodies so; unless it `is_strict`, what means nothing here is left out and named."""
    log = IgnoredLog()

    class BodyRoute(APIRoute):
        def get_route_handler(self) -> Handler:
            handle, field = super().get_route_handler(), self.body_field
            if field is None:
                return handle
            kind: Any = field.field_info.annotation
            read = partial(_read, reader, TypeAdapter(kind))

            async def read_and_handle(request: Request) -> Response:
                leniency = None if is_strict else Leniency()
                request.state.leniency = leniency
                response = await handle(await read(request, leniency))
                if leniency is not None and leniency.names:
                    log.tell(leniency.names)
                    response.headers[HEADER] = leniency.header
                return response

            return read_and_handle

    return BodyRoute


class _ReadRequest(Request):
    """A request whose body has been read: FastAPI finds the value, which it takes as it is, whatever it was called."""

    def __init__(self, request: Request, content: bytes, value: Any = None) -> None:
        headers = [JSON_KIND, *(each for each in request.scope["headers"] if each[0] != JSON_KIND[0])]
        super().__init__({**request.scope, "headers": headers}, request.receive)
        self._content = content
        self._value = value

    async def body(self) -> bytes:
        return self._content

    async def json(self) -> Any:
        return self._value


async def _read(reader: Reader, adapter: TypeAdapter[Any], request: Request, leniency: Leniency | None) -> Request:
    content = await _content(request)
    if not content:
        return _ReadRequest(request, content)  # FastAPI says what is missing
    check_kind(request.headers, content)
    read = partial(_value, adapter, content, leniency)
    value = read() if len(content) <= SMALL_NBYTES else await reader.run(tenant_of(request).name, read)
    return _ReadRequest(request, b"as it was read", value)


async def _content(request: Request) -> bytes:
    """Kept nowhere else, unlike a request's own `body`."""
    try:
        return b"".join([piece async for piece in request.stream()])
    except ClientDisconnect as error:
        raise client_gone() from error


def _value(adapter: TypeAdapter[Any], content: bytes, leniency: Leniency | None) -> Any:
    """Raises HttpError, or RequestValidationError as FastAPI would."""
    check_shape(content)
    value = _parsed(content)
    try:
        return adapter.validate_python(value, context=leniency)
    except ValidationError as error:
        errors = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise RequestValidationError(errors, body=value) from error


def _parsed(content: bytes) -> Any:
    """The fast reader stops at half surrogates and takes integers beyond 64 bits for fractions."""
    try:
        if len(content) > MOST_PYTHON_NBYTES:
            return orjson.loads(content)
        return json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise HttpError(400, f"The body is not valid JSON at {where}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"The body is not valid JSON: {error}.") from error
