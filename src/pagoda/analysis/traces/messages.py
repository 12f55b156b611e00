"""What a row of text says before its prompt and in it: messages in the words of chat templates, instructions, tools.

What is no text, as a picture, becomes words that no other content has: how many tokens a model makes of it nobody knows
here, but two requests that differ in it must not look alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from pagoda.analysis.traces.fields import LineError, Row
from pagoda.checks import shown

SYSTEMS = ("system", "system_prompt", "instructions")  # of Anthropic, of lists of prompts, of OpenAI's Responses
MEDIA = ("image", "images", "video", "videos", "audio", "audios", "multi_modal_data")
FRAMES = ("cache_control", "prompt_cache_breakpoint")  # what of a part is not its content
ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "bot", "chatgpt", "model"), "assistant"),
    "developer": "system",
}
DIGITS = 16  # of a digest

Message = Mapping[str, Any]
Tool = Mapping[str, Any]


def read_messages(name: str, value: Any) -> list[Message]:
    """The messages in the field `name`. Raises LineError."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise LineError(f"{name} is {shown(value)}; it must be a list of messages")
    return [_message(each) for each in value]


def front_of(row: Row) -> list[Message]:
    """What a row has before its messages, as one more: instructions, and what is no text."""
    texts = [_instructions(name, row[name]) for name in SYSTEMS if row.get(name)]
    return [{"role": "system", "content": text}] if (text := "\n\n".join([*texts, *_media(row)])) else []


def tools_of(row: Row) -> list[Tool]:
    """The tools that a model may call, in the words of chat templates. Raises LineError."""
    tools = row.get("tools") or []
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            tools = None
    found: list[Tool] = []
    for name, value in (("tools", tools), ("functions", row.get("functions") or [])):
        if not isinstance(value, list) or not all(map(_is_tool, value)):
            raise LineError(f"{name} is {shown(row[name])}; it must be a list of tools")
        found += map(_tool, value)
    return found


def text_of(content: Any) -> str:
    """The text of a message, which may be in parts, or none beside calls of tools."""
    return "".join(map(_part, content)) if isinstance(content, list) else content or ""


def placeholder(kind: str, content: Any) -> str:
    """What stands for a content that is no text: the same for the same content alone."""
    try:
        written = json.dumps(content, sort_keys=True)
    except RecursionError as error:
        raise LineError(f"a {kind} lies in too many others") from error
    return f"<{kind} {sha256(written.encode()).hexdigest()[:DIGITS]}>"


def _message(message: Mapping[str, Any]) -> Message:
    """In the words of chat templates, whatever they were."""
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if not isinstance(role, str):
        raise LineError(f"a message has the role {shown(role)}")
    if not (content is None or isinstance(content, str | list)):
        raise LineError(f"a message has the content {shown(content)}")
    more = {key: value for key, value in message.items() if key not in ("role", "from", "content", "value", *MEDIA)}
    return {**more, "role": ROLES.get(role, role), "content": "".join(_media(message)) + text_of(content)}


def _instructions(name: str, value: Any) -> str:
    if not isinstance(value, str | list):
        raise LineError(f"{name} is {shown(value)}; it must be text")
    return text_of(value)


def _media(fields: Mapping[str, Any]) -> list[str]:
    return [placeholder(name, fields[name]) for name in MEDIA if fields.get(name)]


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    if not isinstance(part, dict):
        return placeholder("part", part)
    return placeholder(str(part.get("type", "part")), {key: part[key] for key in part if key not in FRAMES})


def _is_tool(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("function", {}), dict)


def _tool(tool: Tool) -> Tool:
    """OpenAI's Responses, Anthropic and OpenAI's older functions name a function and its parameters at the top."""
    if "function" in tool or "name" not in tool or not {"parameters", "input_schema"} & tool.keys():
        return tool
    parameters = tool.get("parameters", tool.get("input_schema"))
    function = {"name": tool["name"], "description": tool.get("description"), "parameters": parameters}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def tools_as_text(tools: Sequence[Tool]) -> str:
    """For a template that shows none."""
    return "\n".join(json.dumps(tool, sort_keys=True) for tool in tools)
