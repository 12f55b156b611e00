"""Counts the requests that were refused or failed, by the status of the answer, whoever has written it.

A stream that fails has said 200 before; the service counts those.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pagoda.server.accepted.service import Service

LEAST_STATUS = 400


class Failures:
    """ASGI middleware around all else that answers. What is only looked at, with GET, is no request to the model."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        status = 500  # of what is raised

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            if status >= LEAST_STATUS:
                tenant = scope.get("state", {}).get("tenant")
                self._service.count_error(None if tenant is None else tenant.name, status)
