"""Turns a messages body into a conversation in the words of chat templates, with its cache breakpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pagoda.errors import HttpError
from pagoda.server.anthropic.schema import (
    Block,
    CacheControl,
    CountBody,
    Message,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
)
from pagoda.server.asked.conversation import Conversation, Part, Turn, instructions

TTL_SECONDS = {"5m": 300.0, "1h": 3600.0}
MAX_BREAKPOINTS = 4


def conversation_of(body: CountBody) -> Conversation:
    """Raises HttpError for what contradicts itself."""
    turns: list[Turn] = []
    if body.system and (parts := instructions(_texts(body.system))):
        turns.append(Turn("system", parts))
    for message in body.messages:
        turns += _turns(message)
    if body.cache_control is not None:
        turns[-1] = _marked(turns[-1], _ttl(body.cache_control))
    tools = body.tools or []
    marks = {index: tool.cache_control for index, tool in enumerate(tools) if tool.cache_control is not None}
    may_call = body.tool_choice is None or body.tool_choice.type != "none"
    conversation = Conversation(
        turns=tuple(turns),
        tools=tuple(_tool(tool) for tool in tools),
        strict_tools=frozenset(tool.name for tool in tools if tool.strict and may_call),
        tool_ttls={index: _ttl(mark) for index, mark in marks.items()},
        continues=body.messages[-1].role == "assistant",
        thinking=None if body.thinking is None else body.thinking.is_asked,
        effort=None if body.output_config is None else body.output_config.effort,
    )
    _check_breakpoints(conversation.ttls)
    return conversation


def _check_breakpoints(ttls: Sequence[float]) -> None:
    if len(ttls) > MAX_BREAKPOINTS:
        raise HttpError(
            400,
            f"There are {len(ttls)} blocks with cache_control; mark at most {MAX_BREAKPOINTS}.",
            param="cache_control",
        )
    if list(ttls) != sorted(ttls, reverse=True):
        raise HttpError(
            400, "A cache_control with ttl 1h stands after one with 5m; longer ones come first.", param="cache_control"
        )


def _turns(message: Message) -> list[Turn]:
    """A message as turns: results of tools are turns of their own."""
    if message.role == "system":
        return [Turn("system", instructions(_contents(message.content)))]
    if isinstance(message.content, str):
        return [Turn(message.role, (Part(message.content),))]
    if message.role == "assistant":
        return [_assistant(message.content)]
    turns = [_result(block) for block in message.content if isinstance(block, ToolResultBlock)]
    texts = [block for block in message.content if not isinstance(block, ToolResultBlock)]
    if texts or not turns:
        turns.append(Turn(message.role, tuple(_part(block) for block in texts)))
    return turns


def _assistant(blocks: Sequence[Block]) -> Turn:
    """Text, then the calls of tools. What the model thought is shown to it again by templates that do so."""
    uses = [block for block in blocks if isinstance(block, ToolUseBlock)]
    calls = [{"id": use.id, "type": "function", "function": {"name": use.name, "arguments": use.input}} for use in uses]
    marks = [use.cache_control for use in uses if use.cache_control is not None]
    shown = [block for block in blocks if block.type not in ("tool_use", "thinking", "redacted_thinking")]
    parts = tuple(_part(block) for block in shown)
    thoughts = "\n".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock) and block.thinking)
    more: dict[str, Any] = {"tool_calls": calls} if calls else {}
    more |= {"reasoning_content": thoughts} if thoughts else {}
    return Turn("assistant", parts, more, _ttl(marks[-1]) if marks else None)


def _result(block: ToolResultBlock) -> Turn:
    parts = _texts(block.content or "")
    turn = Turn("tool", parts, {"tool_call_id": block.tool_use_id})
    return turn if block.cache_control is None else _marked(turn, _ttl(block.cache_control))


def _contents(content: str | Sequence[Block]) -> tuple[Part, ...]:
    return (Part(content),) if isinstance(content, str) else tuple(_part(block) for block in content)


def _texts(content: str | list[TextBlock]) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Part(content),)
    return tuple(_part(block) for block in content)


def _part(block: Any) -> Part:
    if not isinstance(block, TextBlock):
        raise HttpError(400, f"A block of type {block.type} cannot stand there.", param="messages")
    return Part(block.text, None if block.cache_control is None else _ttl(block.cache_control))


def _marked(turn: Turn, ttl_seconds: float) -> Turn:
    """A turn that is to be kept up to its end."""
    return Turn(turn.role, turn.parts, turn.more, ttl_seconds)


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _ttl(control: CacheControl) -> float:
    return TTL_SECONDS[control.ttl]
