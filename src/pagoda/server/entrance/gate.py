"""Takes every HTTP request first: gives it an id, finds its tenant, bounds its body, and logs how it ended."""

from __future__ import annotations

import logging
import re
from time import monotonic
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pagoda.errors import HttpError
from pagoda.server.accepted.service import Service
from pagoda.server.answered.answer import Answer
from pagoda.server.answered.record import Record
from pagoda.server.entrance.bodies import Bodies, Body
from pagoda.server.entrance.origins import Origins, is_preflight
from pagoda.server.entrance.pace import Pace
from pagoda.server.ground.errors import error_response, id_header
from pagoda.server.ground.loopback import check_host
from pagoda.server.ground.messages import new_id
from pagoda.server.ground.tenants import Tenant

access = logging.getLogger("pagoda.access")

PAGE_PATHS = frozenset(("/", "/docs"))
PAGE_FOLDERS = ("/dashboard/", "/docs/")
OPEN_PATHS = frozenset(("/health", "/ready", "/openapi.json"))
METRICS_PATH = "/metrics"
SANE_ID = re.compile(r"[\w.:-]{1,128}")
PLAIN_LENGTH = re.compile(r"[0-9]{1,18}")
MOST_REASON_CHARACTERS = 300
NOBODY = Tenant()


class Gate:
    """ASGI middleware around an app."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._bodies = Bodies(service.options.max_body_bytes, service.tenants.are_several)
        self._pace = Pace() if service.tenants.are_several else None
        self._origins = Origins(service.options)

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
                MutableHeaders(scope=message).update({**shared, id_header(scope["path"]): request_id})
            await send(message)

        shared = self._origins.shared(headers)
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "started": started, "shared_headers": shared}
        try:
            if self._service.options.serves_this_machine_alone:
                check_host(headers)
            if is_preflight(scope["method"], headers):
                await Response(None, 204, self._origins.preflight(headers))(scope, receive, send_with_id)
                return
            self._origins.check(headers, _is_page(scope["path"]))
            tenant = self._tenant(scope, headers)
            if self._pace is not None and tenant is not NOBODY:
                await self._pace.start(tenant.name)
            with self._bodies.hold(tenant.name) as body:
                body.expect(_length(headers))
                await self._app(scope, self._counted(receive, body, tenant), send_with_id)
        except HttpError as error:
            state["refusal"] = error.message
            await error_response(scope["path"], error, request_id)(scope, receive, send_with_id)
        finally:
            _log(scope, request_id, status, monotonic() - started)

    def _tenant(self, scope: Scope, headers: Headers) -> Tenant:
        """Whose request it is. Raises HttpError if nobody's may come here, or no more of this one's."""
        if self._is_open(scope["path"]):
            return NOBODY
        tenant = scope["state"]["tenant"] = self._service.tenants.identify(headers)
        scope["state"].get("let_in", _let_in)(tenant)
        return tenant

    def _is_open(self, path: str) -> bool:
        """Whether no key is needed there."""
        if path == METRICS_PATH:
            return not self._service.options.metrics_need_admin
        return path in OPEN_PATHS or _is_page(path)

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


def _is_page(path: str) -> bool:
    """Whether it is for people to look at, and has nothing of what the server does."""
    return path in PAGE_PATHS or path.startswith(PAGE_FOLDERS)


def _length(headers: Headers) -> int:
    """Bytes that a body is said to have; chunks need not say how many come."""
    length = headers.get("content-length", "")
    return int(length) if PLAIN_LENGTH.fullmatch(length) else 0


def _let_in(_: Tenant) -> None:
    """What a server does that does not count connections."""


def _log(scope: Scope, request_id: str, status: int, seconds: float) -> None:
    state = scope["state"]
    fields: dict[str, Any] = {
        "request_id": request_id,
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "seconds": round(seconds, 4),
    }
    tenant, answer, reason = state.get("tenant"), state.get("answer"), state.get("refusal")
    if tenant is not None and tenant.name:
        fields["tenant"] = tenant.name
    fields |= state.get("counts", {})
    if answer is not None:
        fields |= _counts(answer)
        reason = reason or answer.error
    if reason is not None:
        fields["reason"] = str(reason)[:MOST_REASON_CHARACTERS]
    access.info("request", extra={"fields": fields})


def _counts(answer: Answer) -> dict[str, int]:
    record = Record.of(answer.jobs)
    return {
        "prompt_tokens": record.num_prompt_tokens,
        "cached_tokens": record.num_read,
        "generated_tokens": record.num_output_tokens,
    }
