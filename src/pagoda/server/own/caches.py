"""Names what is kept in the cache, for requests to begin with: `/v1/kv/caches`, as Gemini's API has it.

A cache is made of a prompt or of messages, which are computed at once and leased until it expires. Requests name it as
`cached_content`. Its text is kept in memory (`accepted/contents.py`), its pages where all others are.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from time import time
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from pagoda.errors import HttpError
from pagoda.prompts import ReadPrompt
from pagoda.sampling_params import SamplingParams
from pagoda.server.accepted.contents import Content, full_name
from pagoda.server.accepted.exchange import submit
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import json_response, origin_of, tenant_of
from pagoda.server.answered import sse
from pagoda.server.asked.body import Body, Items, TokenIds
from pagoda.server.asked.conversation import Conversation, ConversationReader, Part, Turn
from pagoda.server.asked.opening import Opening
from pagoda.server.ground.messages import Call, Scope, Work, new_id
from pagoda.server.openai.chat_prompt import tools_of, turns_of
from pagoda.server.openai.schema import Message, Tools

DEFAULT_SECONDS = 3600.0
MOST_SECONDS = 30 * 24 * 3600.0
SECONDS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")
NOT_LEASED = (
    "There is no room among leased pages: these stay as long as nobody else needs the room, or as a tier has them."
)


class ExpiryBody(Body):
    """Of `PATCH /v1/kv/caches/{name}`: when it ends."""

    ttl: str | float | None = None
    expire_time: str | None = None


class CacheBody(ExpiryBody):
    """Of `POST /v1/kv/caches`: what is to be computed, if it is not held, kept, and named."""

    model: str
    prompt: str | TokenIds | None = None
    messages: Items[Message] | None = Field(None, min_length=1)
    tools: Tools | None = None
    name: str | None = Field(None, pattern=r"^(caches/)?[a-zA-Z0-9_.-]{1,64}$")
    display_name: str | None = Field(None, max_length=128)


class NamedCaches:
    """The handlers, over one service."""

    def __init__(self, service: Service, conversations: ConversationReader) -> None:
        self._service = service
        self._conversations = conversations
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}

    async def create(self, body: CacheBody, request: Request) -> Response:
        """Compute a prompt, keep it, and give it a name."""
        service, tenant = self._service, tenant_of(request)
        service.check_model(body.model)
        expires = _expires(body, time())
        name = full_name(body.name or new_id(""))
        service.contents.check_room(tenant.name, name)
        opening, now = replace(await self._opening(body, request), name=name), time()
        content = Content(opening, service.names[0], body.display_name, now, now, expires, is_leased=False)
        service.contents.check_room(tenant.name, name, content.nbytes)
        content = replace(content, is_leased=await self._keep(opening, expires, request))
        service.contents.add(tenant.name, content)
        self._end_at(tenant.name, content)
        return json_response(_shown(content))

    async def list_all(self, request: Request) -> Response:
        """What the tenant has, the oldest first."""
        contents = self._service.contents.all(tenant_of(request).name)
        return json_response({"object": "list", "data": [_shown(each) for each in contents]})

    async def retrieve(self, name: str, request: Request) -> Response:
        """What there is of this name; not its text."""
        return json_response(_shown(self._service.contents.find(tenant_of(request).name, name)))

    async def update(self, name: str, body: ExpiryBody, request: Request) -> Response:
        """Let it expire at another time. What is not held any more is computed again."""
        tenant, contents = tenant_of(request).name, self._service.contents
        if body.ttl is None and body.expire_time is None:
            raise HttpError(400, "Only the end of a cache can be changed; give ttl or expire_time.", param="ttl")
        found, expires = contents.find(tenant, name), _expires(body, time())
        contents.replace(tenant, replace(found, is_leased=False))
        await asyncio.wrap_future(self._lease_ended(tenant, found))  # or it would last as long as it did before
        is_leased = await self._keep(found.opening, expires, request)
        content = replace(found, updated=time(), expires=expires, is_leased=is_leased)
        contents.replace(tenant, content)
        self._end_at(tenant, content)
        return json_response(_shown(content))

    async def delete(self, name: str, request: Request) -> Response:
        """Forget it; its pages may go."""
        tenant = tenant_of(request).name
        content = self._service.contents.remove(tenant, name)
        self._stop_timer((tenant, content.name))
        await asyncio.wrap_future(self._lease_ended(tenant, content))
        return json_response({"name": content.name, "object": "kv.cache", "deleted": True})

    async def _opening(self, body: CacheBody, request: Request) -> Opening:
        service, tenant = self._service, tenant_of(request)
        if (body.prompt is None) == (body.messages is None):
            raise HttpError(400, "Give prompt or messages, and not both.", param="prompt")
        if body.tools is not None and body.messages is None:
            raise HttpError(400, "tools belong to messages; give these too.", param="tools")
        if service.backend.model.has_encoder:
            raise HttpError(400, "What this model's decoder computes depends on what its encoder reads: name nothing.")
        param = "messages" if body.prompt is None else "prompt"
        return await service.read(self._read, body, param, tenant)

    def _read(self, body: CacheBody) -> Opening:
        if body.prompt is not None:
            prompt = self._service.backend.texts.read(body.prompt)
            return Opening(text=prompt.text, token_ids=prompt.token_ids)
        turns = tuple(map(_unmarked, turns_of(body.messages or [])))
        conversation = Conversation(turns, tools_of(body.tools), adds_generation_prompt=False)
        prompt = self._conversations.read(conversation).prompt
        strict = frozenset(tool.function.name for tool in body.tools or () if tool.function.strict)
        return Opening("", prompt.text, prompt.token_ids, turns, conversation.tools, strict)

    async def _keep(self, opening: Opening, expires: float, request: Request) -> bool:
        """Compute what is not held, and lease it; whether that was granted."""
        kept = replace(opening, ttl_seconds=max(expires - time(), 0.001))
        prompt = ReadPrompt(kept.text, list(kept.token_ids))
        work = Work(prompt, SamplingParams(max_tokens=0), breakpoints=kept.breakpoints)
        call = Call(new_id("cache_"), origin_of(request), [work], "prompt")
        answer = submit(self._service, call, request)
        await sse.finish(answer, request)
        return answer.jobs[0].lease_results[0].granted

    def _lease_ended(self, tenant: str, content: Content) -> Future[bool]:
        """End the lease of its pages, unless another name is of the same ones."""
        tokens = list(content.opening.token_ids)
        others = (each for each in self._service.contents.all(tenant) if each.name != content.name)
        if not any(list(each.opening.token_ids) == tokens for each in others):
            return self._service.backend.end_lease(Scope(tenant), tokens)
        nothing: Future[bool] = Future()
        nothing.set_result(False)
        return nothing

    def _end_at(self, tenant: str, content: Content) -> None:
        """Let its pages go when it expires, however often they were used until then."""
        key = (tenant, content.name)
        self._stop_timer(key)
        seconds = max(content.expires - time(), 0.0)
        self._timers[key] = asyncio.get_running_loop().call_later(seconds, self._expired, key, content)

    def _stop_timer(self, key: tuple[str, str]) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _expired(self, key: tuple[str, str], content: Content) -> None:
        del self._timers[key]
        self._lease_ended(key[0], content)


def _unmarked(turn: Turn) -> Turn:
    """Without marks: all of it is kept."""
    return Turn(turn.role, tuple(Part(part.text) for part in turn.parts), turn.more)


def _expires(body: ExpiryBody, now: float) -> float:
    """When it is to end, in seconds since 1970. Raises HttpError."""
    if body.ttl is not None and body.expire_time is not None:
        raise HttpError(400, "Give ttl or expire_time, and not both.", param="expire_time")
    if body.expire_time is not None:
        expires, param = _time(body.expire_time), "expire_time"
    else:
        expires, param = now + _seconds(body.ttl), "ttl"
    if not now < expires <= now + MOST_SECONDS:
        raise HttpError(400, f"{param} must be after now, and within {MOST_SECONDS:.0f}s.", param=param)
    return expires


def _seconds(ttl: str | float | None) -> float:
    if ttl is None:
        return DEFAULT_SECONDS
    if not isinstance(ttl, str):
        return ttl
    match = SECONDS.fullmatch(ttl)
    if match is None:
        raise HttpError(400, f"ttl is {ttl[:40]!r}; give seconds, as 300 or '300s'.", param="ttl")
    return float(match[1])


def _time(text: str) -> float:
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        message = f"expire_time is {text[:40]!r}; give a time as 2026-11-27T12:00:00Z."
        raise HttpError(400, message, param="expire_time") from error


def _shown(content: Content) -> dict[str, Any]:
    lease = {"granted": content.is_leased} | ({} if content.is_leased else {"note": NOT_LEASED})
    return {
        "name": content.name,
        "object": "kv.cache",
        "model": content.model,
        "display_name": content.display_name,
        "create_time": _written(content.created),
        "update_time": _written(content.updated),
        "expire_time": _written(content.expires),
        "usage": {"total_tokens": len(content.opening.token_ids)},
        "lease": lease,
    }


def _written(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
