"""Answers those who run the server: is it up, which models are there, how is the cache, forget what it holds."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from pagoda import __version__
from pagoda.cache.inspector import CacheStats
from pagoda.errors import HttpError
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import check_admin, json_response
from pagoda.server.watched.pulse import Pulse

STATS_SECONDS = 0.25  # a step of a large model may take longer: then the last statistics have to do


class Operation:
    """The handlers, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stats = service.backend.inspector.stats().result()
        self._pulse = Pulse(service.backend, service.reader)

    async def health(self) -> Response:
        """200 while the engine runs; says what does not move."""
        if not self._service.backend.is_alive:
            raise HttpError(503, "The engine has stopped; restart the server.", code="engine_stopped")
        trouble = self._pulse.trouble
        return json_response({"status": "ok"} | ({} if trouble is None else {"trouble": trouble}))

    async def ready(self) -> Response:
        """200 while new requests are accepted and those before them move."""
        if self._service.is_draining:
            raise HttpError(503, "The server is shutting down.", code="shutting_down")
        if (trouble := self._pulse.trouble) is not None:
            raise HttpError(503, trouble, code="stuck")
        return await self.health()

    async def version(self) -> Response:
        """Of Pagoda."""
        return json_response({"version": __version__})

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        if self._service.options.metrics_need_admin:
            check_admin(request)
        stats = await self.stats()
        waiting = self._service.num_waiting
        running = sum(len(answer.jobs) for answer in self._service.in_flight) - waiting
        return Response(self._service.metrics.render(stats, running, waiting), media_type=CONTENT_TYPE_LATEST)

    async def stats(self) -> CacheStats:
        """Of the cache, as of now or, while a long step runs, of a moment ago."""
        future = asyncio.wrap_future(self._service.backend.inspector.stats())
        done, _ = await asyncio.wait([future], timeout=STATS_SECONDS)
        if done:
            self._stats = future.result()
        return self._stats

    async def models(self, request: Request) -> Response:
        """The names under which the one model is served."""
        listed = [self._model(name, request) for name in self._service.names]
        if _is_anthropic(request):
            return json_response(
                {"data": listed, "has_more": False, "first_id": listed[0]["id"], "last_id": listed[-1]["id"]}
            )
        return json_response({"object": "list", "data": listed})

    async def model(self, name: str, request: Request) -> Response:
        self._service.check_model(name)
        return json_response(self._model(name, request))

    async def reset_prefix_cache(self, request: Request, reset_external: bool = False) -> Response:
        """Forget every page that no request uses; tiers forget as well with `reset_external`."""
        check_admin(request)
        if reset_external:
            await asyncio.to_thread(self._service.backend.forget_tiers)
        count = await asyncio.wrap_future(self._service.backend.reset())
        return json_response({"success": True, "pages": count})

    def _model(self, name: str, request: Request) -> dict[str, Any]:
        service = self._service
        if _is_anthropic(request):
            return {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
        return {
            "id": name,
            "object": "model",
            "created": int(service.started),
            "owned_by": "pagoda",
            "root": service.names[0],
            "parent": None,
            "max_model_len": service.backend.model.max_model_len,
        }


def _is_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers
