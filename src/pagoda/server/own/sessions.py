"""Saves conversations with their pages by name, and resumes them after a restart: `/v1/kv/sessions`.

A tenant has its own sessions and learns nothing of others'. What is saved is computed as any other request is.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.cache.session_file import SUFFIX, SessionFile
from pagoda.engine.sessions import SavedSession, SessionTarget
from pagoda.errors import HttpError, SessionError, SessionNotWrittenError, SessionTooLargeError
from pagoda.prompts import ReadPrompt
from pagoda.sampling_params import SamplingParams
from pagoda.server.accepted.exchange import submit
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import json_response, origin_of, scope_of, tenant_of
from pagoda.server.answered import sse
from pagoda.server.answered.record import Record
from pagoda.server.asked.body import Body
from pagoda.server.asked.conversation import ConversationReader
from pagoda.server.ground.messages import Call, Scope, SessionText, Work, new_id
from pagoda.server.own.said import SaidBody, SaidReader
from pagoda.server.own.session_folder import NAME_PATTERN, SessionFolder

Result = TypeVar("Result")

NUM_READERS = 4
NUM_WRITERS = 2  # each with a copy of the pages that it writes
NO_FOLDER = "This server keeps no sessions; start it with --session-dir FOLDER."


class SessionBody(SaidBody):
    """Of `POST /v1/kv/sessions`: what is to be saved, and what it is called."""

    name: str = Field(pattern=f"^{NAME_PATTERN}$")
    title: str = Field("", max_length=200)


class ResumeBody(Body):
    """Of `POST /v1/kv/sessions/{name}/resume`: requests with this salt find the pages."""

    cache_salt: str | None = None


class Sessions:
    """The handlers, over one service."""

    def __init__(self, service: Service, conversations: ConversationReader) -> None:
        self._service = service
        self._said = SaidReader(service, conversations)
        self._readers = ThreadPoolExecutor(NUM_READERS, "pagoda-sessions")
        self._writers = ThreadPoolExecutor(NUM_WRITERS, "pagoda-saving")
        options = service.options
        self._folder = None if options.session_dir is None else SessionFolder(options.session_dir, options)

    async def save(self, body: SessionBody, request: Request) -> Response:
        """Compute a prompt or a conversation, as far as it is not held, and save it with its pages."""
        folder, service = self._need_folder(), self._service
        service.check_model(body.model)
        path = folder.path(tenant_of(request).name, body.name)
        is_answered = body.messages is not None and body.messages[-1].role == "assistant"
        read = await self._said.read(body, request, begins_answer=not is_answered)
        call = Call(
            call_id=new_id("session_"),
            origin=origin_of(request),
            works=[Work(read.prompt, SamplingParams(max_tokens=0))],
            param="prompt",
            cache_salt=body.cache_salt or "",
        )
        answer = submit(service, call, request)
        await sse.finish(answer, request)
        text = SessionText(body.title, body.plain_messages, read.written)
        write = partial(self._saved, path, read.prompt, call.scope, text)
        saved = await asyncio.get_running_loop().run_in_executor(self._writers, write)
        told = {"name": body.name, "tokens": saved.num_tokens, "held_tokens": saved.num_held_tokens}
        return json_response({**told, "bytes": saved.nbytes, "kv": Record.of(answer.jobs).kv()})

    async def list(self, request: Request) -> Response:
        """Your sessions, by name."""
        paths = self._need_folder().all
        told = await self._read(lambda: [self._outline(path) for path in paths(tenant_of(request).name)])
        return json_response({"object": "list", "data": told})

    async def show(self, name: str, request: Request) -> Response:
        """What one session is, with its messages."""
        path = self._need_folder().find(tenant_of(request).name, name)
        return json_response(await self._read(lambda: self._whole(path)))

    async def delete(self, name: str, request: Request) -> Response:
        """Remove a session; pages that it has brought to the cache stay there."""
        folder = self._need_folder()
        await self._read(lambda: folder.delete(tenant_of(request).name, name))
        return json_response({"name": name, "deleted": True})

    async def resume(self, name: str, body: ResumeBody, request: Request) -> Response:
        """Put the pages of a session into the cache: requests that begin with its tokens compute none of them."""
        path = self._need_folder().find(tenant_of(request).name, name)
        try:
            scope = scope_of(request, body.cache_salt)
            loaded = await asyncio.wrap_future(self._service.backend.sessions.load(path, scope))
        except SessionError as error:
            raise _conflict(name, path, error) from error
        if loaded.written is not None and self._service.transcripts is not None:
            tokens = array(TOKEN_TYPE, loaded.token_ids[: loaded.written.num_tokens])
            self._service.transcripts.restore(scope, loaded.written.digest, tokens)
        return json_response(
            {
                "name": name,
                "title": loaded.title,
                "tokens": len(loaded.token_ids),
                "held_tokens": loaded.num_held_tokens,
                "reason": loaded.reason,
                "messages": loaded.messages,
            }
        )

    def _saved(self, path: FilePath, prompt: ReadPrompt, scope: Scope, text: SessionText) -> SavedSession:
        name = path.name.removesuffix(SUFFIX)
        with self._need_folder().room(path) as reserve:
            target = SessionTarget(path, name, reserve)
            try:
                return self._service.backend.sessions.save(target, prompt, scope, text).result()
            except SessionTooLargeError as error:
                raise HttpError(413, f"{error} Delete other sessions.", code="session_quota") from error
            except SessionNotWrittenError as error:
                message = f"Session {name!r}: {_without(path, str(error))}"
                raise HttpError(507, message, code="session_not_written") from error
            except SessionError as error:
                raise _conflict(name, path, error) from error

    def _outline(self, path: FilePath) -> dict[str, Any]:
        """What a session says of itself; damaged ones are told of, too, so that they can be deleted."""
        name = path.name.removesuffix(SUFFIX)
        try:
            with self._service.backend.sessions.open(path) as file:
                return _told(name, file)
        except SessionError as error:
            return {"name": name, "error": _without(path, str(error))}

    def _whole(self, path: FilePath) -> dict[str, Any]:
        name = path.name.removesuffix(SUFFIX)
        try:
            with self._service.backend.sessions.open(path) as file:
                return _told(name, file) | {"messages": file.conversation.messages}
        except SessionError as error:
            raise _conflict(name, path, error) from error

    async def _read(self, function: Callable[[], Result]) -> Result:
        """On threads of its own: files may take long."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function)

    def _need_folder(self) -> SessionFolder:
        if self._folder is None:
            raise HttpError(404, NO_FOLDER, code="sessions_off")
        return self._folder


def _told(name: str, file: SessionFile) -> dict[str, Any]:
    description = file.description
    return {
        "name": name,
        "title": file.conversation.title,
        "model": description.model,
        "created": datetime.fromtimestamp(description.created_ms / 1000, UTC).isoformat(timespec="seconds"),
        "tokens": len(file.tokens),
        "held_tokens": description.num_held_tokens,
        "bytes": file.nbytes,
        "format": description.identity.format,
        "page_tokens": description.identity.page_tokens,
    }


def _conflict(name: str, path: FilePath, error: SessionError) -> HttpError:
    return HttpError(409, f"Session {name!r}: {_without(path, str(error))}", code="session_error")


def _without(path: FilePath, message: str) -> str:
    """Where files lie is of no concern to clients."""
    return message.replace(f"{path}: ", "").replace(str(path), "it")
