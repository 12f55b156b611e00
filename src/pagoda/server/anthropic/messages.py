"""Answers conversations, and counts their tokens: `/v1/messages`, `/v1/messages/count_tokens`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pagoda.errors import HttpError
from pagoda.sampling_params import SamplingParams, StructuredOutputs
from pagoda.server.accepted.exchange import Exchange, respond
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import json_response, request_id_of, scope_of, tenant_of
from pagoda.server.answered.record import Record
from pagoda.server.anthropic.prompt import conversation_of
from pagoda.server.anthropic.schema import CountBody, MessagesBody, ToolChoiceTool
from pagoda.server.anthropic.writer import MessageShape, MessageWriter
from pagoda.server.asked.conversation import Conversation, ConversationReader
from pagoda.server.asked.fingerprint import Fingerprint, History, ReadBody, Section, missed_tokens
from pagoda.server.asked.forms import call_form, check_choice, json_form
from pagoda.server.asked.opening import Opening
from pagoda.server.asked.sampling import checked
from pagoda.server.ground.messages import Call, Scope
from pagoda.server.replies.reader import Terms

REASONS = {
    Section.MODEL: "model_changed",
    Section.TOOLS: "tools_changed",
    Section.SYSTEM: "system_changed",
    Section.MESSAGES: "messages_changed",
}


class Messages:
    """The handlers, over one service."""

    def __init__(self, service: Service, conversations: ConversationReader) -> None:
        self._service = service
        self._conversations = conversations
        self._history = History()
        self._exchange = Exchange(service, "msg_", "messages")

    async def create(self, body: MessagesBody, request: Request) -> Response:
        """Answer a conversation."""
        service = self._service
        service.check_model(body.model)
        opening = service.contents.opening(tenant_of(request).name, body.cached_content, body.cache_salt)
        _check(body, opening)
        form_param = "tools" if _must_call(body) else "output_config"
        asked, call = await self._exchange.ask(body, request, partial(self._reading, opening), form_param)
        shape = MessageShape(
            message_id=call.call_id,
            body=body,
            style=asked.read.style,
            max_model_len=service.backend.model.max_model_len,
            diagnose=self._diagnosis(call, body, asked.fingerprint),
        )
        writer = MessageWriter(shape, _terms(body, asked), request_id_of(request))
        response = await respond(service, call, request, writer)
        self._history.remember(call.origin.tenant.name, call.call_id, asked.fingerprint)
        return response

    async def count_tokens(self, body: CountBody, request: Request) -> Response:
        """How many tokens a conversation has; nothing is computed."""
        self._service.check_model(body.model)
        scope, tenant = scope_of(request, body.cache_salt), tenant_of(request)
        opening = self._service.contents.opening(tenant.name, body.cached_content, body.cache_salt)
        count = partial(self._count, opening=opening, scope=scope)
        return json_response({"input_tokens": await self._service.read(count, body, "messages", tenant)})

    def _reading(self, opening: Opening, scope: Scope) -> Callable[[MessagesBody], ReadBody]:
        return partial(self._read, opening=opening, scope=scope)

    def _read(self, body: MessagesBody, opening: Opening, scope: Scope) -> ReadBody:
        conversation = opening.before(conversation_of(body))
        params = _params(body, conversation, self._service.backend.model.default_params)
        read = self._conversations.read(conversation, scope, opening)
        fingerprint = _fingerprint(conversation, body).with_tokens(len(read.prompt.token_ids))
        return ReadBody(conversation, params, read, fingerprint)

    def _count(self, body: CountBody, opening: Opening, scope: Scope) -> int:
        conversation = opening.before(conversation_of(body))
        return len(self._conversations.read(conversation, scope, opening).prompt.token_ids)

    def _diagnosis(
        self, call: Call, body: MessagesBody, fingerprint: Fingerprint
    ) -> Callable[[Record], dict[str, Any] | None]:
        """Tells why less was read than the previous message would have allowed, if that is asked."""
        previous_id = None if body.diagnostics is None else body.diagnostics.previous_message_id
        if previous_id is None:
            return lambda _: None
        previous = self._history.find(call.origin.tenant.name, previous_id)
        if previous is None:
            return lambda _: {"cache_miss_reason": {"type": "previous_message_not_found"}}
        return lambda record: _miss(previous, fingerprint, record)


def _fingerprint(conversation: Conversation, body: MessagesBody) -> Fingerprint:
    settings = None if body.tool_choice is None else body.tool_choice.model_dump()
    return Fingerprint.of(conversation, model=body.model, cache_key=body.cache_salt, settings=settings)


def _miss(previous: Fingerprint, fingerprint: Fingerprint, record: Record) -> dict[str, Any] | None:
    missed = missed_tokens(previous, record.num_prompt_tokens, record.num_read)
    if not missed:
        return None
    divergence = fingerprint.divergence(previous)
    kind = None if divergence is None else REASONS.get(divergence.section)
    if divergence is None or kind is None:  # evicted, not computed yet, or what the API has no word for
        return {"cache_miss_reason": {"type": "unavailable"}}
    return {"cache_miss_reason": {"type": kind, "cache_missed_input_tokens": missed}}


def _must_call(body: MessagesBody) -> bool:
    return body.tool_choice is not None and body.tool_choice.type in ("any", "tool")


def _terms(body: MessagesBody, asked: ReadBody) -> Terms:
    """What the model may write: calls of the tools that it is given, if it may call any."""
    choice = body.tool_choice
    may_call = choice is None or choice.type != "none"
    is_single = choice is not None and choice.type != "none" and choice.disable_parallel_tool_use
    return Terms(
        tools=asked.conversation.tools if may_call else (),
        is_forced=_must_call(body),
        is_form=asked.params.structured_outputs is not None,
        id_prefix="toolu_",
        most_calls=1 if is_single else None,
    )


def _form(body: MessagesBody, conversation: Conversation) -> StructuredOutputs | None:
    wanted = None if body.output_config is None else body.output_config.format
    if not _must_call(body):
        return None if wanted is None else json_form(wanted.schema_)
    if wanted is not None:
        raise HttpError(400, "output_config.format and a tool_choice that asks for a call contradict.")
    return call_form(conversation.tools, _chosen(body))


def _chosen(body: MessagesBody) -> str | None:
    """The tool that has to be called."""
    return body.tool_choice.name if isinstance(body.tool_choice, ToolChoiceTool) else None


def _params(body: MessagesBody, conversation: Conversation, defaults: SamplingParams) -> SamplingParams:
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "seed": body.seed,
        "stop": body.stop_sequences,
        "kv_compression": body.kv_compression,
        "sparse_attention": body.sparse_attention,
        "context_full": body.context_full,
        "memory_full": body.memory_full,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    form = _form(body, conversation)
    return checked(defaults, **fields, max_tokens=body.max_tokens, ignore_eos=body.ignore_eos, structured_outputs=form)


def _check(body: MessagesBody, opening: Opening) -> None:
    """Contradictions between fields."""
    if not body.max_tokens:
        if body.stream:
            raise HttpError(400, "stream: with max_tokens 0 there is nothing to stream.", param="stream")
        if _must_call(body) or (body.output_config is not None and body.output_config.format is not None):
            raise HttpError(400, "max_tokens is 0, and a form of output is asked for.", param="max_tokens")
    if _must_call(body):
        check_choice([*opening.tool_names, *(tool.name for tool in body.tools or ())], _chosen(body))
