"""Reads what handlers need of an HTTP request, and writes JSON responses."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pagoda.errors import HttpError
from pagoda.server.answered.sse import until_gone
from pagoda.server.asked.leniency import Leniency
from pagoda.server.ground.jsons import to_json
from pagoda.server.ground.messages import Origin, Scope
from pagoda.server.ground.tenants import Tenant

TIMEOUT_HEADER = "x-request-timeout"


def json_response(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")


def tenant_of(request: Request) -> Tenant:
    """As the gate has found it."""
    tenant: Tenant = request.state.tenant
    return tenant


def check_admin(request: Request) -> None:
    """Raises HttpError 403 for everybody else."""
    if not tenant_of(request).is_admin:
        raise HttpError(403, "This key may not do that; use an admin's key.", code="admin_only")


def scope_of(request: Request, cache_salt: str | None) -> Scope:
    """Whose answers may have come back in this request."""
    return Scope(tenant_of(request).name, cache_salt or "")


def request_id_of(request: Request) -> str:
    return str(request.state.request_id)


def origin_of(request: Request) -> Origin:
    """Who asks, and how. Raises HttpError for nonsense."""
    gone = partial(until_gone, request)
    return Origin(tenant_of(request), _timeout_of(request), request.headers, request.state.started, gone)


def ignore(request: Request, names: Iterable[str]) -> None:
    """Let the answer's header name what of a schema has no effect. Raises HttpError where the server is strict."""
    leniency: Leniency | None = request.state.leniency
    for name in names:
        if leniency is None:
            raise HttpError(400, f"The schema has {name}, which cannot be enforced; leave that out.", param=name)
        leniency.leave_out(name)


def _timeout_of(request: Request) -> float | None:
    """Seconds after which the client does not want the answer any more."""
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise HttpError(400, f"{TIMEOUT_HEADER} is {text!r}; give seconds above 0.", param=TIMEOUT_HEADER)
    return seconds
