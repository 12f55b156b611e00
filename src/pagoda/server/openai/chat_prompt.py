"""Turns the messages of a chat completion into a conversation in the words of chat templates."""

from __future__ import annotations

from typing import Any

from pagoda.chat.messages import read_arguments
from pagoda.server.asked.conversation import Conversation, Part, Turn, instructions
from pagoda.server.asked.json_shape import check_arguments
from pagoda.server.openai.marks import kept, ttl_of
from pagoda.server.openai.schema import ChatBody, Message, PromptCacheOptions, TextPart, Tool


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
