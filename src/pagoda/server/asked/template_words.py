"""Completes what chat templates insist on: fields of tools that they read without asking, ids of calls of one length.

Knows templates by their text and conversations by their words; renders nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from pagoda.server.replies.dialects import find_dialect

DEFAULTS: Mapping[str, Any] = {"description": "", "parameters": {"type": "object", "properties": {}}}
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def complete_tool(tool: Mapping[str, Any], template: str) -> dict[str, Any]:
    """A tool with the fields that the template reads by name, though clients may leave them out."""
    function = tool.get("function", {})
    missing = {name: value for name, value in DEFAULTS.items() if name not in function and _reads(template, name)}
    return {**tool, "function": {**function, **missing}} if missing else dict(tool)


def call_id_length(template: str) -> int | None:
    """How long ids of calls have to be, if the template insists on that."""
    dialect = find_dialect(template)
    return None if dialect is None else dialect.id_length


def with_ids(message: dict[str, Any], length: int | None) -> dict[str, Any]:
    """A message whose ids of calls are of this length: the same id always becomes the same one."""
    if length is None:
        return message
    fitted = dict(message)
    if isinstance(message.get("tool_call_id"), str):
        fitted["tool_call_id"] = _fitted(message["tool_call_id"], length)
    if isinstance(message.get("tool_calls"), list):
        fitted["tool_calls"] = [{**call, "id": _fitted(str(call.get("id")), length)} for call in message["tool_calls"]]
    return fitted


def _fitted(call_id: str, length: int) -> str:
    if len(call_id) == length and call_id.isascii() and call_id.isalnum():
        return call_id
    number = int.from_bytes(blake2b(call_id.encode(errors="replace"), digest_size=16).digest())
    return "".join(ALPHABET[number // len(ALPHABET) ** place % len(ALPHABET)] for place in range(length))


def _reads(template: str, name: str) -> bool:
    return re.search(rf"\.{name}\b|\[['\"]{name}['\"]\]", template) is not None
