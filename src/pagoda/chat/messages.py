"""What callers give as conversations, in the words of chat templates. Knows no template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pagoda.errors import RequestError

Message = dict[str, Any]

# What the parts of a message are called by those who have text for us.
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
INSTEAD_OF_CONTENT = ("tool_calls", "reasoning_content", "thinking", "reasoning")
FORM = 'give a list of {"role": ..., "content": ...}'


def read_conversations(messages: Any) -> list[list[Message]]:
    """Several conversations, whether one was given or several. Raises RequestError."""
    _check_list(messages, "The messages")
    if all(isinstance(each, Mapping) for each in messages):
        return [read_conversation(messages)]
    if not all(isinstance(each, (list, tuple)) for each in messages):
        odd = next(each for each in messages if not isinstance(each, Mapping))
        raise RequestError(f"The messages have {_shown(odd)} among them; {FORM}, or a list of such lists.")
    return [read_conversation(each, f" of conversation {number}") for number, each in enumerate(messages)]


def read_conversation(messages: Any, which: str = "") -> list[Message]:
    """One conversation; `which` is said of it in errors. Raises RequestError."""
    _check_list(messages, f"The messages{which}")
    return [_message(message, f"Message {number}{which}") for number, message in enumerate(messages)]


def read_arguments(text: str) -> Any:
    """Arguments of a call as templates want them: an object if it is one, or nothing."""
    if text.strip() in ("", "null"):
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _check_list(messages: Any, name: str) -> None:
    if not isinstance(messages, (list, tuple)):
        raise RequestError(f"{name} cannot be {_shown(messages)}; {FORM}.")
    if not messages:
        raise RequestError(f"{name} are empty; {FORM}.")


def _message(message: Any, name: str) -> Message:
    if not isinstance(message, Mapping):
        raise RequestError(f"{name} is {_shown(message)}; {FORM}.")
    if not isinstance(message.get("role"), str):
        raise RequestError(f"{name} has no role; {FORM}.")
    content = message.get("content")
    if content is None and not any(message.get(other) for other in INSTEAD_OF_CONTENT):
        raise RequestError(f"{name} has no content; {FORM}.")
    # Templates join content to other text without asking whether there is any.
    read = {**message, "content": "" if content is None else _text(content, name)}
    if message.get("tool_calls") is not None:
        read["tool_calls"] = _calls(message["tool_calls"], name)
    return read


def _text(content: Any, name: str) -> str:
    """The text of a message, the parts of it on lines of their own."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise RequestError(f"{name} has {_shown(content)} as its content; give text, or a list of parts of text.")
    return "\n".join(_part(part, name) for part in content)


def _part(part: Any, name: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise RequestError(f'{name} has {_shown(part)} as a part; give {{"type": "text", "text": ...}}.')
    if kind not in TEXT_PARTS:
        raise RequestError(f"{name} has a part of type {kind!r:.50}; chats are of text alone, so leave it out.")
    text = part.get(TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise RequestError(f"{name} has a part of type {kind!r} without {TEXT_PARTS[kind]}; give it one.")
    return text


def _calls(calls: Any, name: str) -> list[Any]:
    """Calls of tools, their arguments as templates want them."""
    if not isinstance(calls, (list, tuple)) or not all(isinstance(call, Mapping) for call in calls):
        raise RequestError(f"{name} has {_shown(calls)} as its tool_calls; give a list of calls as OpenAI has them.")
    return [_call(call) for call in calls]


def _call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    return {**call, "function": {**function, "arguments": read_arguments(function["arguments"])}}


def _shown(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
