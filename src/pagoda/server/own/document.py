"""The app's document, of routes and their fields (OpenAPI): made when it is first asked for.

That takes half a second, which a start need not last longer, and happens in a thread, where it holds up nobody else.
Knows what bodies may have and which models there are; the routes are the app's.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse

from pagoda.server.accepted.service import Service
from pagoda.server.own.examples import add_examples


class Document:
    """What the app says of itself, with the names of models, with examples, and as lenient as the service is."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        self._app, self._names = app, service.names
        self._is_strict = service.options.strict_fields

    def read(self, _: Request) -> JSONResponse:
        return JSONResponse(self._content)

    @cached_property
    def _content(self) -> dict[str, Any]:
        document = self._app.openapi()
        for schema in document["components"]["schemas"].values():
            field = schema.get("properties", {}).get("model")
            if field is not None:
                field["enum"] = list(self._names)
            if not self._is_strict:
                schema.pop("additionalProperties", None)  # bodies may have what means nothing here
        add_examples(document, self._names[0])
        return document
