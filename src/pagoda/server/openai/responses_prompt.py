"""Turns the input of a response into a conversation in the words of chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pagoda.chat.messages import read_arguments
from pagoda.server.asked.conversation import Conversation, Part, Turn, instructions
from pagoda.server.asked.json_shape import check_arguments
from pagoda.server.openai.marks import kept, ttl_of
from pagoda.server.openai.responses_schema import (
    Content,
    FunctionCallItem,
    FunctionCallOutputItem,
    FunctionTool,
    InputItem,
    InputText,
    MessageItem,
    ReasoningItem,
    ResponseBody,
)
from pagoda.server.replies.pieces import ToolCall


def conversation_of(body: ResponseBody, earlier: Sequence[Turn]) -> Conversation:
    """`earlier` turns are those of the response that this one goes on from."""
    if not isinstance(body.input, str):
        check_arguments((item.arguments for item in body.input if isinstance(item, FunctionCallItem)), "input")
    turns = [] if body.instructions is None else [Turn("system", (Part(body.instructions),))]
    turns += [*earlier, *input_turns(body)]
    tools = tuple(_tool(tool) for tool in body.tools or ())
    strict = frozenset(tool.name for tool in body.tools or () if tool.strict and body.tool_choice != "none")
    return Conversation(
        turns=tuple(turns),
        tools=tools,
        strict_tools=strict,
        effort=None if body.reasoning is None else body.reasoning.effort,
        **kept(body.prompt_cache_options),
    )


def input_turns(body: ResponseBody) -> list[Turn]:
    if isinstance(body.input, str):
        return [Turn("user", (Part(body.input),))]
    turns: list[Turn] = []
    ttl = "30m" if body.prompt_cache_options is None else body.prompt_cache_options.ttl
    thoughts = ""
    for item in body.input:
        if isinstance(item, ReasoningItem):
            thoughts = item.text
            continue
        _append(turns, item, ttl)
        if thoughts and turns[-1].role == "assistant":
            turns[-1] = replace(turns[-1], more={**turns[-1].more, "reasoning_content": thoughts})
        thoughts = ""
    return turns


def answer_turn(text: str, calls: Sequence[ToolCall]) -> Turn:
    """What the model answered, for those that go on from it."""
    more = {"tool_calls": [_call(call.name, call.arguments, call.call_id) for call in calls]} if calls else {}
    return Turn("assistant", (Part(text),), more)


def _append(turns: list[Turn], item: InputItem, ttl: str) -> None:
    """Add an item to `turns`; calls belong to the assistant's turn before them."""
    match item:
        case MessageItem():
            role = "system" if item.role == "developer" else item.role
            parts = _parts(item.content, ttl)
            turns.append(Turn(role, instructions(parts) if role == "system" else parts))
        case FunctionCallOutputItem():
            turns.append(Turn("tool", _parts(item.output, ttl), {"tool_call_id": item.call_id}))
        case FunctionCallItem():
            if not turns or turns[-1].role != "assistant":
                turns.append(Turn("assistant", (Part(""),)))
            if "tool_calls" not in turns[-1].more:
                turns[-1] = replace(turns[-1], more={**turns[-1].more, "tool_calls": []})
            turns[-1].more["tool_calls"].append(_call(item.name, item.arguments, item.call_id))


def _parts(content: str | Sequence[Content], ttl: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Part(content),)
    return tuple(_part(part, ttl) for part in content)


def _part(content: Content, ttl: str) -> Part:
    if isinstance(content, InputText):
        return Part(content.text, ttl_of(content.prompt_cache_breakpoint, ttl))
    return Part(content.text if content.type == "output_text" else content.refusal)


def _call(name: str, arguments: str, call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": read_arguments(arguments)}}


def _tool(tool: FunctionTool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}
