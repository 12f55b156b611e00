"""What every HTTP request passes first: an id, the key, the size of its body; and what is logged when it ends."""

from __future__ import annotations

import logging
import re
from time import monotonic
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pagoda.errors import HttpError
from pagoda.server.bodies import Bodies, Body
from pagoda.server.errors import error_response, id_header
from pagoda.server.loopback import check_names
from pagoda.server.pace import Pace
from pagoda.server.service import Service, new_id
from pagoda.server.tenants import Tenant

access = logging.getLogger("pagoda.access")

OPEN_PATHS = frozenset(("/", "/health", "/ready", "/openapi.json"))
METRICS_PATH = "/metrics"
OPEN_FOLDERS = ("/dashboard/",)
SANE_ID = re.compile(r"[\w.:-]{1,128}")
PLAIN_LENGTH = re.compile(r"[0-9]{1,18}")
NOBODY = Tenant()


class Gate:
    """ASGI middleware around an app."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._bodies = Bodies(service.options.max_body_bytes, service.tenants.are_several)
        self._pace = Pace() if service.tenants.are_several else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, started = Headers(scope=scope), monotonic()
        given = headers.get("x-request-id", "")
        request_id = given if SANE_ID.fullmatch(given) else new_id("req_")
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[id_header(scope["path"])] = request_id
            await send(message)

        try:
            state = scope.setdefault("state", {})
            state |= {"request_id": request_id, "started": started}
            if self._service.options.serves_this_machine_alone:
                check_names(headers)
            tenant = NOBODY
            if not self._is_open(scope["path"]):
                tenant = state["tenant"] = self._service.tenants.identify(headers)
                state.get("let_in", _let_in)(tenant)
            if self._pace is not None and tenant is not NOBODY:
                await self._pace.start(tenant.name)
            with self._bodies.hold(tenant.name) as body:
                body.expect(_length(headers))
                await self._app(scope, self._counted(receive, body, tenant), send_with_id)
        except HttpError as error:
            await error_response(scope["path"], error, request_id)(scope, receive, send_with_id)
        finally:
            _log(scope, request_id, status, monotonic() - started)

    def _is_open(self, path: str) -> bool:
        """Whether no key is needed there."""
        if path == METRICS_PATH:
            return not self._service.options.metrics_need_admin
        return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)

    def _counted(self, receive: Receive, body: Body, tenant: Tenant) -> Receive:
        """`receive`, which refuses more than a body may have, and takes its time with what comes fast."""

        async def counted() -> Message:
            message = await receive()
            nbytes = len(message.get("body", b""))
            body.add(nbytes)
            if nbytes and self._pace is not None:
                await self._pace.keep(tenant.name, nbytes)
            return message

        return counted


def _length(headers: Headers) -> int:
    """Bytes that a body is said to have; chunks need not say how many come."""
    length = headers.get("content-length", "")
    return int(length) if PLAIN_LENGTH.fullmatch(length) else 0


def _let_in(_: Tenant) -> None:
    """What a server does that does not count connections."""


def _log(scope: Scope, request_id: str, status: int, seconds: float) -> None:
    fields: dict[str, Any] = {
        "request_id": request_id,
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "seconds": round(seconds, 4),
    }
    tenant = scope.get("state", {}).get("tenant")
    if tenant is not None and tenant.name:
        fields["tenant"] = tenant.name
    access.info("request", extra={"fields": fields})
