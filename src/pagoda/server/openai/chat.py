"""`/v1/chat/completions`: conversations, answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pagoda.chat.messages import read_arguments
from pagoda.engine.request import TokenLogprobs
from pagoda.errors import HttpError
from pagoda.outputs import CompletionOutput, RequestOutput
from pagoda.sampling_params import SamplingParams, StructuredOutputs
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import ignore, json_response, origin_of, scope_of, submit
from pagoda.server.answered import sse
from pagoda.server.answered.answer import Answer
from pagoda.server.answered.record import Record
from pagoda.server.answered.token_text import TokenTexts
from pagoda.server.asked.conversation import (
    Conversation,
    ConversationReader,
    Part,
    ReadConversation,
    Turn,
    instructions,
)
from pagoda.server.asked.forms import call_form, check_choice, json_form, left_out
from pagoda.server.asked.json_shape import check_arguments
from pagoda.server.ground.messages import Call, Scope, new_id
from pagoda.server.openai.chat_writer import SampleDeltas, end_of, message_of
from pagoda.server.openai.guided import guided_form, guided_param
from pagoda.server.openai.marks import kept, ttl_of
from pagoda.server.openai.parameters import sampling_params
from pagoda.server.openai.projection import chat_logprobs, identity_of, late_error, usage
from pagoda.server.openai.schema import (
    ChatBody,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NamedTool,
    PromptCacheOptions,
    TextPart,
    Tool,
)
from pagoda.server.replies.pieces import Block, Thought, ToolCall
from pagoda.server.replies.reader import ReplyReader, Terms, read_sample
from pagoda.server.replies.style import ReplyStyle


@dataclass(frozen=True)
class _Shape:
    """What the answer to one call looks like, and what its samples may have in them."""

    identity: dict[str, Any]
    num_top: int
    returns_ids: bool
    style: ReplyStyle
    terms: Terms


class ChatCompletions:
    """The handler, over one service."""

    def __init__(self, service: Service, conversations: ConversationReader, texts: TokenTexts | None) -> None:
        self._service = service
        self._conversations = conversations
        self._texts = texts

    async def create(self, body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        service = self._service
        service.check_model(body.model)
        _check(body)
        origin = origin_of(request)
        service.check_room(origin.tenant, "messages")
        scope = scope_of(request, body.cache_salt)
        conversation, params, read = await service.read(
            partial(self._read, scope=scope), body, "messages", origin.tenant
        )
        ignore(request, left_out(params.structured_outputs))
        is_free = body.tool_choice in (None, "none", "auto")
        form_param = (guided_param(body) or "response_format") if is_free else "tools"
        call = Call(
            call_id=new_id("chatcmpl-"),
            origin=origin,
            works=[await service.work(read, params, form_param, origin)],
            param="messages",
            streams=bool(body.stream),
            cache_salt=body.cache_salt or "",
        )
        shape = _Shape(
            identity=identity_of(call.call_id, "chat.completion", body.model),
            num_top=body.top_logprobs or 0,
            returns_ids=body.return_token_ids,
            style=read.style,
            terms=_terms(body, conversation, params),
        )
        answer = submit(service, call, request)
        if body.stream:
            return sse.EventStream(answer, self._events(answer, body, shape), late_error)
        outputs = await sse.finish(answer, request)
        return await asyncio.to_thread(self._whole, outputs[0], answer, body, shape)

    def _read(self, body: ChatBody, scope: Scope) -> tuple[Conversation, SamplingParams, ReadConversation]:
        conversation = conversation_of(body)
        params = _params(body, conversation, self._service.backend.model.default_params)
        return conversation, params, self._conversations.read(conversation, scope)

    def _whole(self, output: RequestOutput, answer: Answer, body: ChatBody, shape: _Shape) -> Response:
        """Beside the event loop: log-probabilities of many samples take a while."""
        replies = [read_sample(sample, shape.style, shape.terms) for sample in output.outputs]
        thinking = [
            sample
            for sample, blocks in zip(output.outputs, replies, strict=True)
            if any(isinstance(block, Thought) for block in blocks)
        ]
        pairs = zip(output.outputs, replies, strict=True)
        return json_response(
            {
                **shape.identity,
                "choices": [self._choice(sample, blocks, shape) for sample, blocks in pairs],
                "usage": self._usage(answer, body, shape, thinking),
                "service_tier": "default",
            }
        )

    def _usage(
        self, answer: Answer, body: ChatBody, shape: _Shape, thinking: Sequence[CompletionOutput]
    ) -> dict[str, Any]:
        """`thinking` are the samples that begin with a thought."""
        num_thought_tokens = sum(shape.style.num_thought_tokens(sample.token_ids) for sample in thinking)
        return usage(Record.of(answer.jobs), body.prompt_cache_options, num_thought_tokens)

    def _choice(self, sample: CompletionOutput, blocks: list[Block], shape: _Shape) -> dict[str, Any]:
        num_calls = sum(isinstance(block, ToolCall) for block in blocks)
        return {
            "index": sample.index,
            "message": message_of(blocks),
            "logprobs": self._logprobs(sample.logprobs, shape),
            "finish_reason": end_of(sample.finish_reason, num_calls),
            "stop_reason": sample.stop_reason,
            **({"token_ids": sample.token_ids} if shape.returns_ids else {}),
        }

    def _logprobs(self, logprobs: list[TokenLogprobs] | None, shape: _Shape) -> dict[str, Any] | None:
        if logprobs is None or self._texts is None:
            return None
        return chat_logprobs(logprobs, self._texts, shape.num_top)

    async def _events(self, answer: Answer, body: ChatBody, shape: _Shape) -> AsyncIterator[bytes]:
        identity = {**shape.identity, "object": "chat.completion.chunk"}
        wants_usage = body.stream_options is not None and body.stream_options.include_usage
        more = {"usage": None} if wants_usage else {}
        samples: dict[int, SampleDeltas] = {}
        async for news in answer:
            events = []
            for _, chunk in news:
                if chunk.index not in samples:
                    samples[chunk.index] = SampleDeltas(chunk.index, ReplyReader(shape.style, shape.terms))
                    events.append(sse.data({**identity, "choices": [samples[chunk.index].first()], **more}))
                ids = {"token_ids": chunk.token_ids} if shape.returns_ids else {}
                choices = samples[chunk.index].of(chunk, self._logprobs(chunk.logprobs, shape), ids)
                events += [sse.data({**identity, "choices": [choice], **more}) for choice in choices]
            yield b"".join(events)
        if wants_usage:
            output = answer.outputs[0]
            assert output is not None
            thinking = [sample for sample in output.outputs if samples[sample.index].has_thought]
            yield sse.data({**identity, "choices": [], "usage": self._usage(answer, body, shape, thinking)})
        yield sse.DONE


def conversation_of(body: ChatBody) -> Conversation:
    """A body in the words of chat templates."""
    return Conversation(
        turns=turns_of(body.messages, body.prompt_cache_options),
        tools=tools_of(body.tools),
        strict_tools=frozenset(
            tool.function.name for tool in body.tools or () if tool.function.strict and body.tool_choice != "none"
        ),
        continues=body.continue_final_message,
        adds_generation_prompt=body.add_generation_prompt,
        arguments=body.chat_template_kwargs or {},
        effort=body.reasoning_effort,
        **kept(body.prompt_cache_options),
    )


def turns_of(messages: list[Message], options: PromptCacheOptions | None = None) -> tuple[Turn, ...]:
    calls = (call for message in messages for call in message.tool_calls or ())
    check_arguments((call.function.arguments for call in calls), "messages")
    ttl = "30m" if options is None else options.ttl
    return tuple(_turn(message, ttl) for message in messages)


def tools_of(tools: list[Tool] | None) -> tuple[dict[str, Any], ...]:
    return tuple(tool.model_dump(exclude_none=True) for tool in tools or ())


def _turn(message: Message, ttl: str) -> Turn:
    more: dict[str, Any] = {}
    if message.tool_calls:
        more["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
            for call in message.tool_calls
            for arguments in [read_arguments(call.function.arguments)]
        ]
    more |= {name: value for name in ("name", "tool_call_id") if (value := getattr(message, name)) is not None}
    if thoughts := message.reasoning_content or message.reasoning:
        more["reasoning_content"] = thoughts
    role = "system" if message.role == "developer" else message.role
    parts = _parts(message, ttl)
    return Turn(role, instructions(parts) if role == "system" else parts, more)


def _parts(message: Message, ttl: str) -> tuple[Part, ...]:
    if message.content is None or isinstance(message.content, str):
        return (Part(message.content or ""),)
    return tuple(
        Part(part.text, ttl_of(part.prompt_cache_breakpoint, ttl)) if isinstance(part, TextPart) else Part(part.refusal)
        for part in message.content
    )


def _params(body: ChatBody, conversation: Conversation, defaults: SamplingParams) -> SamplingParams:
    limits = [each for each in (body.max_completion_tokens, body.max_tokens) if each is not None]
    most = min(limits, default=defaults.max_tokens)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    form = _form(body, conversation)
    return sampling_params(body, defaults, max_tokens=most, logprobs=logprobs, structured_outputs=form)


def _terms(body: ChatBody, conversation: Conversation, params: SamplingParams) -> Terms:
    """What the model may write: calls of the tools that it is given, if it may call any."""
    return Terms(
        tools=() if body.tool_choice == "none" else conversation.tools,
        is_forced=body.tool_choice not in (None, "none", "auto"),
        is_form=params.structured_outputs is not None,
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
    if body.tool_choice in (None, "none", "auto"):
        return form
    if form is not None:
        raise HttpError(400, f"{field} and a tool_choice that asks for a call contradict.", param="tool_choice")
    return call_form(conversation.tools, _chosen(body))


def _chosen(body: ChatBody) -> str | None:
    """The tool that has to be called."""
    return body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else None


def _check(body: ChatBody) -> None:
    """Contradictions between fields."""
    if body.stream_options is not None and not body.stream:
        raise HttpError(400, "stream_options needs stream to be true.", param="stream_options")
    if body.top_logprobs is not None and not body.logprobs:
        raise HttpError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
    if body.tool_choice not in (None, "none", "auto"):
        check_choice([tool.function.name for tool in body.tools or ()], _chosen(body))
    if body.continue_final_message and body.messages[-1].role != "assistant":
        raise HttpError(
            400, "continue_final_message needs the last message to be the assistant's.", param="continue_final_message"
        )
