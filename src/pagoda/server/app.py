"""Puts the routes of the server together, and answers whatever goes wrong in them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from pagoda import __version__
from pagoda.errors import HttpError, PagodaError
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import request_id_of
from pagoda.server.answered.token_text import TokenTexts
from pagoda.server.anthropic.messages import Messages
from pagoda.server.asked.conversation import ConversationReader
from pagoda.server.entrance.body_route import body_route
from pagoda.server.entrance.failures import Failures
from pagoda.server.entrance.gate import Gate
from pagoda.server.ground.errors import error_response, invalid_field, refused
from pagoda.server.openai.chat import ChatCompletions
from pagoda.server.openai.completions import Completions
from pagoda.server.openai.embeddings import Embeddings
from pagoda.server.openai.responses import Responses
from pagoda.server.own.caches import NamedCaches
from pagoda.server.own.document import Document
from pagoda.server.own.explain import Explain
from pagoda.server.own.identity import PageIdentity
from pagoda.server.own.kv import Kv
from pagoda.server.own.operation import Operation
from pagoda.server.own.sessions import Sessions
from pagoda.server.own.tokens import Tokens
from pagoda.server.own.webpage import Webpage

logger = logging.getLogger(__name__)

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request is refused; the body says why."},
    "5XX": {"description": "The request failed; the body says why."},
}


def create_app(service: Service) -> FastAPI:
    """The ASGI application over `service`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(
        title="Pagoda",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,  # ours is made later
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # to whatever name the header Host has
        middleware=[Middleware(Failures, service=service), Middleware(Gate, service=service)],
        exception_handlers={
            HttpError: _on_pagoda_error,
            PagodaError: _on_pagoda_error,
            RequestValidationError: _on_invalid,
            HTTPException: _on_http_exception,
            Exception: _on_bug,
        },
    )
    app.router.route_class = body_route(service.reader, service.options.strict_fields)
    _add_routes(app, service)
    app.add_route("/openapi.json", Document(app, service).read, include_in_schema=False)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    texts = service.backend.texts
    conversations = ConversationReader(texts, service.options.chat_template_text, service.transcripts)
    token_texts = None if texts.tokenizer is None else TokenTexts(texts.tokenizer)
    operation, tokens = Operation(service), Tokens(service, conversations)
    messages = Messages(service, conversations)
    responses = Responses(service, conversations, token_texts)
    kv, sessions = Kv(service, conversations), Sessions(service, conversations)
    caches = NamedCaches(service, conversations)
    routes = (
        ("POST", "/v1/completions", Completions(service, token_texts).create),
        ("POST", "/v1/chat/completions", ChatCompletions(service, conversations, token_texts).create),
        ("POST", "/v1/embeddings", Embeddings(service).create),
        ("POST", "/v1/responses", responses.create),
        ("GET", "/v1/responses/{response_id}", responses.retrieve),
        ("DELETE", "/v1/responses/{response_id}", responses.delete),
        ("POST", "/v1/messages", messages.create),
        ("POST", "/v1/messages/count_tokens", messages.count_tokens),
        ("GET", "/v1/models", operation.models),
        ("GET", "/v1/models/{name:path}", operation.model),
        ("POST", "/tokenize", tokens.tokenize),
        ("POST", "/detokenize", tokens.detokenize),
        ("GET", "/tokenizer_info", tokens.info),
        ("GET", "/v1/kv/status", kv.status),
        ("GET", "/v1/kv/tree", kv.tree),
        ("GET", "/v1/kv/explain", Explain(service).explain),
        ("GET", "/v1/kv/identity", PageIdentity(service).identity),
        ("POST", "/v1/kv/pin", kv.pin),
        ("GET", "/v1/kv/events", kv.events),
        ("POST", "/v1/kv/sessions", sessions.save),
        ("GET", "/v1/kv/sessions", sessions.list),
        ("GET", "/v1/kv/sessions/{name}", sessions.show),
        ("DELETE", "/v1/kv/sessions/{name}", sessions.delete),
        ("POST", "/v1/kv/sessions/{name}/resume", sessions.resume),
        ("POST", "/v1/kv/caches", caches.create),
        ("GET", "/v1/kv/caches", caches.list_all),
        ("GET", "/v1/kv/caches/{name:path}", caches.retrieve),
        ("PATCH", "/v1/kv/caches/{name:path}", caches.update),
        ("DELETE", "/v1/kv/caches/{name:path}", caches.delete),
        ("GET", "/health", operation.health),
        ("GET", "/ready", operation.ready),
        ("GET", "/version", operation.version),
        ("GET", "/metrics", operation.metrics),
        ("POST", "/reset_prefix_cache", operation.reset_prefix_cache),
        ("POST", "/flush_cache", operation.reset_prefix_cache),
    )
    for method, path, handler in routes:
        app.add_api_route(path, handler, methods=[method], response_model=None, responses=ERRORS)
    app.add_api_route("/v1/responses/compact", responses.compact, methods=["POST"], include_in_schema=False)
    dashboard, reference = Webpage("dashboard"), Webpage("reference")
    for path, page in (
        ("/", dashboard.index),
        ("/dashboard/{name}", dashboard.file),
        ("/docs", reference.index),
        ("/docs/{name}", reference.file),
    ):
        app.add_api_route(path, page, methods=["GET", "HEAD"], response_model=None, include_in_schema=False)
    # Those who only look whether somebody is there.
    for path, handler in (("/health", operation.health), ("/ready", operation.ready)):
        app.add_api_route(path, handler, methods=["HEAD"], response_model=None, include_in_schema=False)


async def _on_pagoda_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PagodaError)
    return _refusal(request, refused(error))


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _refusal(request, invalid_field(error.errors(), error.body))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == 404:
        message = f"There is nothing at {request.url.path}."
    elif error.status_code == 405:
        message = f"{request.method} is not possible at {request.url.path}."
    return _refusal(request, HttpError(error.status_code, message))


async def _on_bug(request: Request, error: Exception) -> Response:
    """Answered around the gate, which adds nothing to it."""
    logger.error("Request %s failed", request_id_of(request), exc_info=error)
    response = _refusal(request, HttpError(500, "The server failed; its log says why."))
    response.headers.update(request.state.shared_headers)
    return response


def _refusal(request: Request, error: HttpError) -> Response:
    """The log line of the request has the reason too."""
    request.state.refusal = error.message
    return error_response(request.url.path, error, request_id_of(request))
