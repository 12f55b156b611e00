"""Answers conversations: `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from pagoda.errors import HttpError
from pagoda.sampling_params import SamplingParams, StructuredOutputs
from pagoda.server.accepted.exchange import Exchange, respond
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import tenant_of
from pagoda.server.answered.token_text import TokenTexts
from pagoda.server.asked.conversation import Conversation, ConversationReader, ReadConversation
from pagoda.server.asked.forms import call_form, check_choice, json_form
from pagoda.server.asked.opening import Opening
from pagoda.server.ground.messages import Scope
from pagoda.server.openai.chat_prompt import conversation_of
from pagoda.server.openai.chat_writer import ChatShape, ChatWriter
from pagoda.server.openai.guided import guided_form, guided_param
from pagoda.server.openai.parameters import sampling_params
from pagoda.server.openai.schema import (
    ChatBody,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
)
from pagoda.server.replies.reader import Terms


class _ReadChat(NamedTuple):
    """A body that has been read."""

    conversation: Conversation
    params: SamplingParams
    read: ReadConversation


class ChatCompletions:
    """The handler, over one service."""

    def __init__(self, service: Service, conversations: ConversationReader, token_texts: TokenTexts | None) -> None:
        self._service = service
        self._conversations = conversations
        self._token_texts = token_texts
        self._exchange = Exchange(service, "chatcmpl-", "messages")

    async def create(self, body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        self._service.check_model(body.model)
        opening = self._service.contents.opening(tenant_of(request).name, body.cached_content, body.cache_salt)
        _check(body, opening)
        form_param = (guided_param(body) or "response_format") if _is_free(body) else "tools"
        asked, call = await self._exchange.ask(body, request, partial(self._reading, opening), form_param)
        shape = ChatShape(call.call_id, body, asked.read.style, _terms(body, asked))
        return await respond(self._service, call, request, ChatWriter(shape, self._token_texts))

    def _reading(self, opening: Opening, scope: Scope) -> Callable[[ChatBody], _ReadChat]:
        return partial(self._read, opening=opening, scope=scope)

    def _read(self, body: ChatBody, opening: Opening, scope: Scope) -> _ReadChat:
        conversation = opening.before(conversation_of(body))
        params = _params(body, conversation, self._service.backend.model.default_params)
        return _ReadChat(conversation, params, self._conversations.read(conversation, scope, opening))


def _params(body: ChatBody, conversation: Conversation, defaults: SamplingParams) -> SamplingParams:
    limits = [each for each in (body.max_completion_tokens, body.max_tokens) if each is not None]
    most = min(limits, default=defaults.max_tokens)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    form = _form(body, conversation)
    return sampling_params(body, defaults, max_tokens=most, logprobs=logprobs, structured_outputs=form)


def _is_free(body: ChatBody) -> bool:
    """Whether the model need not call a tool."""
    return body.tool_choice in (None, "none", "auto")


def _terms(body: ChatBody, asked: _ReadChat) -> Terms:
    """What the model may write: calls of the tools that it is given, if it may call any."""
    return Terms(
        tools=() if body.tool_choice == "none" else asked.conversation.tools,
        is_forced=not _is_free(body),
        is_form=asked.params.structured_outputs is not None,
        most_calls=1 if body.parallel_tool_calls is False else None,
    )


def _form(body: ChatBody, conversation: Conversation) -> StructuredOutputs | None:
    wanted, form = body.response_format, guided_form(body)
    field = guided_param(body) or "response_format"
    if form is not None and isinstance(wanted, JsonSchemaFormat | JsonObjectFormat):
        raise HttpError(400, f"response_format and {field} contradict; give one of them.", param=field)
    if isinstance(wanted, JsonSchemaFormat):
        form = json_form(wanted.json_schema.schema_, "response_format" if wanted.json_schema.strict else None)
    elif isinstance(wanted, JsonObjectFormat):
        form = json_form(wanted.schema_)
    if _is_free(body):
        return form
    if form is not None:
        raise HttpError(400, f"{field} and a tool_choice that asks for a call contradict.", param="tool_choice")
    return call_form(conversation.tools, _chosen(body))


def _chosen(body: ChatBody) -> str | None:
    """The tool that has to be called."""
    return body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else None


def _check(body: ChatBody, opening: Opening) -> None:
    """Contradictions between fields."""
    if body.stream_options is not None and not body.stream:
        raise HttpError(400, "stream_options needs stream to be true.", param="stream_options")
    if body.top_logprobs is not None and not body.logprobs:
        raise HttpError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
    if not _is_free(body):
        check_choice([*opening.tool_names, *(tool.function.name for tool in body.tools or ())], _chosen(body))
    if body.continue_final_message and body.messages[-1].role != "assistant":
        raise HttpError(
            400, "continue_final_message needs the last message to be the assistant's.", param="continue_final_message"
        )
