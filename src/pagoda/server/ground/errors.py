"""Writes errors as each API does. Knows statuses and shapes; whoever refuses a request says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from pagoda.errors import (
    EngineClosedError,
    HttpError,
    InvalidSamplingError,
    MemoryFullError,
    OutOfPagesError,
    PagodaError,
    PromptTooLongError,
    StructuredOutputError,
)
from pagoda.server.ground.jsons import to_json

MOST_CHARACTERS = 2000  # of a message or of a field's name: what is told has texts of the client's in it
MOST_ERRORS = 100  # of one body, among which the first is looked for
ANTHROPIC_PATHS = ("/v1/messages",)
RETRY_SECONDS = 1  # once pages were short
CLIENT_GONE = 499  # nobody is answered so; it tells who has hung up from what has failed

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


def error_body(path: str, error: HttpError, request_id: str) -> dict[str, Any]:
    """The body in the shape of the API that `path` belongs to."""
    message = _shortened(error.message)
    if path.startswith(ANTHROPIC_PATHS):
        kind = ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    kind = OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    param = None if error.param is None else _shortened(error.param)
    return {"error": {"message": message, "type": kind, "param": param, "code": error.code}}


def error_response(path: str, error: HttpError, request_id: str) -> Response:
    headers = {id_header(path): request_id}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(error.retry_after_seconds)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = to_json(error_body(path, error, request_id))
    return Response(body, error.status, headers, media_type="application/json")


def id_header(path: str) -> str:
    """Where an answer has the id of its request."""
    return "request-id" if path.startswith(ANTHROPIC_PATHS) else "x-request-id"


def refused(error: PagodaError, prompt_param: str | None = None) -> HttpError:
    """An error found before a request was accepted, as an answer. `prompt_param` is the field that has the prompt."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, EngineClosedError):
        return HttpError(503, "The server is shutting down; try another one.", code="shutting_down")
    if isinstance(error, PromptTooLongError):
        # In the words that clients look for, of both APIs: they shorten a conversation then.
        sizes = f"prompt is too long: {error.num_tokens} tokens > {error.max_tokens} maximum"
        limit = f"This model's maximum context length is {error.max_tokens} tokens"
        return HttpError(400, f"{sizes}. {limit}. {error}", param=prompt_param, code="context_length_exceeded")
    # Messages about sampling begin with the field.
    param = str(error).split(" ", 1)[0] if isinstance(error, InvalidSamplingError) else prompt_param
    return HttpError(400, str(error), param=param, code=type(error).__name__)


def failed(error: Exception) -> HttpError:
    """An error that ended an accepted request, as an answer."""
    if isinstance(error, HttpError):
        return error
    cause = error.__cause__ or error
    if isinstance(cause, (InvalidSamplingError, StructuredOutputError)):
        return refused(cause)
    if isinstance(cause, MemoryFullError):
        return HttpError(503, str(error), code="memory_full", retry_after_seconds=RETRY_SECONDS)
    status = 503 if isinstance(cause, (OutOfPagesError, EngineClosedError)) else 500
    return HttpError(status, str(error), code="engine_error")


def client_gone() -> HttpError:
    """What ends a request whose client has closed the connection."""
    return HttpError(CLIENT_GONE, "The client has gone.", code="client_gone")


def too_late() -> HttpError:
    """The answer of a request whose time is over."""
    return HttpError(504, "The request was not done in the time it was given.", code="deadline_exceeded")


def invalid_field(errors: Sequence[Mapping[str, Any]], body: Any) -> HttpError:
    """What pydantic found in a body, as an answer that names the first wrong field."""
    errors = errors[:MOST_ERRORS]
    names = [_field_name(each, body) for each in errors]
    # Of the branches of a union the one that got furthest is meant.
    first, name = max(
        (pair for pair in zip(errors, names, strict=True) if pair[1].startswith(names[0])),
        key=lambda pair: pair[1].count("."),
    )
    param = name or None
    message = str(first["msg"])
    if first["type"] == "extra_forbidden":
        message = "There is no such field; check its spelling, or leave it out."
    elif first["type"] == "json_invalid":
        return HttpError(400, f"The body is not valid JSON: {first.get('ctx', {}).get('error', message)}.")
    return HttpError(400, f"{param}: {message}" if param else message, param=param, code=str(first["type"]))


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "…"


def _field_name(error: Mapping[str, Any], body: Any) -> str:
    """The path of a wrong field in `body`. A location has the branches of unions in it as well, which no body has."""
    location = error["loc"]
    if location[0] != "body":
        return str(location[-1])
    return ".".join(_path(location[1:], body, error["type"] == "missing") or ())


def _path(location: Sequence[str | int], value: Any, is_missing: bool) -> list[str] | None:
    """The parts of `location` that lead through `value`: as many as possible, and the last one if any way leads there.

    A branch may be called as a field that is there: a part of type `text` has a `text`. None if there is no way.
    """
    if not location:
        return []
    part, rest = location[0], location[1:]
    without = _path(rest, value, is_missing)
    if isinstance(value, Mapping) and part in value:
        inside = _path(rest, value[str(part)], is_missing)
    elif isinstance(value, Sequence) and not isinstance(value, str) and isinstance(part, int) and part < len(value):
        inside = _path(rest, value[part], is_missing)
    elif is_missing and not rest and isinstance(value, Mapping):
        inside = []
    else:
        return without
    found = [str(part), *(inside or ())]
    return without if without is not None and len(without) >= len(found) else found
