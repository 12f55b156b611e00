"""What the requests of real clients look like: their fields, blocks and headers, with words of our own.

Each is as its client sent it when it was recorded, by name and version. Those without a version (Continue and Cline,
Open WebUI) were not recorded: they are written from what is known of these programs. `session` stands for all that
differs between two sessions with the same instructions and tools; a conversation of two turns has a call of a tool in
between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MODEL = "pagoda-tiny"
INSTRUCTIONS = "You are an agent that helps with software. Use the tools, and answer in few words. " * 20
PARAMETERS = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"command": {"type": "string", "description": "What to run"}},
    "required": ["command"],
    "additionalProperties": False,
}
FUNCTION = {"name": "shell", "description": "Runs a command.", "parameters": PARAMETERS}
ARGUMENTS = '{"command": "date"}'
EPHEMERAL = {"type": "ephemeral"}

Body = dict[str, Any]


@dataclass(frozen=True)
class ClientShape:
    """`ask(session, question, is_second)` makes the body of a turn; the second has the first one's call before it."""

    name: str
    path: str
    ask: Callable[[str, str, bool], Body]
    headers: dict[str, str]


def claude_code(session: str, question: str, is_second: bool) -> Body:
    """2.1.197"""
    reminder = {"type": "text", "text": "<system-reminder>\nKeep the project's notes in mind.\n</system-reminder>"}
    asked = {"type": "text", "text": question}
    messages: list[Body] = [{"role": "user", "content": [reminder, asked]}]
    if is_second:
        use = {"type": "tool_use", "id": "toolu_1", "name": "shell", "input": {"command": "date"}}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Friday", "is_error": False}
        messages += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    messages[-1]["content"][-1]["cache_control"] = EPHEMERAL
    return {
        "model": MODEL,
        "messages": messages,
        "system": [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.197.{session}; cc_entrypoint=cli;"},
            {"type": "text", "text": "You are an agent.", "cache_control": EPHEMERAL},
            {"type": "text", "text": INSTRUCTIONS, "cache_control": EPHEMERAL},
        ],
        "tools": [{"name": "shell", "description": "Runs a command.", "input_schema": PARAMETERS}],
        "metadata": {"user_id": f'{{"device_id": "a", "session_id": "{session}"}}'},
        "max_tokens": 8,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "stream": True,
    }


def codex(session: str, question: str, is_second: bool) -> Body:
    """0.171.0"""

    def message(role: str, *texts: str) -> Body:
        content = [{"type": "input_text", "text": text} for text in texts]
        return {"type": "message", "id": f"msg_{session}_{role}", "role": role, "content": content}

    items = [
        message("developer", INSTRUCTIONS),
        message("developer", "<skills>None.</skills>", "<permissions>All.</permissions>"),
        message("user", "<environment>\n  <shell>bash</shell>\n</environment>"),
        message("user", question),
    ]
    if is_second:
        items += [
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
            {"type": "function_call", "id": "fc_1", "name": "shell", "arguments": ARGUMENTS, "call_id": "call_1"},
            {"type": "function_call_output", "call_id": "call_1", "output": "Friday"},
        ]
    function = {"type": "function", "strict": False, **FUNCTION}
    return {
        "model": MODEL,
        "stream": True,
        "input": items,
        "tools": [
            function,
            {"type": "namespace", "name": "agents", "description": "Other agents", "tools": [function]},
            {"type": "web_search", "external_web_access": False},
            {"type": "custom", "name": "apply_patch", "description": "A patch", "format": {"type": "grammar"}},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": session,
        "client_metadata": {"session_id": session, "x-codex-window-id": session},
        "max_output_tokens": 8,
    }


def chat(
    question: str,
    is_second: bool,
    call: Body | None = None,
    answer: Body | None = None,
    result: Body | None = None,
    **more: Any,
) -> Body:
    """What clients of chat completions have in common; a call, its answer and its result have fields of their own."""
    messages: list[Body] = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": question}]
    if is_second:
        function = {"name": "shell", "arguments": ARGUMENTS}
        calls = [{"id": "call_1", "type": "function", "function": function, **(call or {})}]
        messages += [
            {"role": "assistant", "content": None, "tool_calls": calls, **(answer or {})},
            {"role": "tool", "tool_call_id": "call_1", "content": "Friday", **(result or {})},
        ]
    tools = [{"type": "function", "function": FUNCTION}]
    return {"model": MODEL, "messages": messages, "tools": tools, "max_tokens": 8, **more}


def litellm(session: str, question: str, is_second: bool) -> Body:
    """1.110.2, a history as its own answers are"""
    answer = {"function_call": None, "provider_specific_fields": None, "reasoning_content": None, "images": []}
    body = chat(question, is_second, answer=answer, result={"name": "shell"}, user=session)
    body["messages"][0]["content"] = [{"type": "text", "text": INSTRUCTIONS, "cache_control": EPHEMERAL}]
    return body | {"stream": True, "stream_options": {"include_usage": True}, "extra_headers": {"x-session": session}}


def langchain(session: str, question: str, is_second: bool) -> Body:
    """langchain-openai 1.7.4"""
    return chat(question, is_second, stream=False, metadata={"session": session})


def instructor(session: str, question: str, is_second: bool) -> Body:
    """1.17.0"""
    choice = {"type": "function", "function": {"name": "shell"}}
    return chat(question, is_second, answer={"refusal": None, "annotations": []}, user=session) | (
        {} if is_second else {"tool_choice": choice}
    )


def openai_agents(session: str, question: str, is_second: bool) -> Body:
    """0.24.0, its own history"""
    items: list[Body] = [{"content": question, "role": "user"}]
    if is_second:
        call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "shell", "arguments": ARGUMENTS}
        items += [
            call | {"status": "completed", "caller": None, "namespace": None},
            {"type": "function_call_output", "call_id": "call_1", "output": "Friday"},
        ]
    return {
        "include": [],
        "input": items,
        "instructions": INSTRUCTIONS,
        "max_output_tokens": 8,
        "model": MODEL,
        "tools": [{"type": "function", "strict": True, **FUNCTION}],
        "prompt_cache_key": session,
    }


def vercel(session: str, question: str, is_second: bool) -> Body:
    """ai 6.0.326"""
    body = chat(question, is_second, answer={"content": ""}, user=session, tool_choice="auto")
    return body | {"stream": True, "stream_options": {"include_usage": True}}


def llm_cli(session: str, question: str, is_second: bool) -> Body:
    """0.36"""
    return chat(question, is_second, user=session, stream=True, stream_options={"include_usage": True})


def continue_dev(session: str, question: str, is_second: bool) -> Body:
    """As Continue and Cline write: parts for every content, calls with an index"""
    body = chat(question, is_second, call={"index": 0}, answer={"content": " "}, stream=True, parallel_tool_calls=False)
    for message in body["messages"]:
        if isinstance(message["content"], str) and message["role"] != "tool":
            message["content"] = [{"type": "text", "text": message["content"]}]
    return body | {"temperature": 0, "stream_options": {"include_usage": True}, "user": session}


def open_webui(session: str, question: str, is_second: bool) -> Body:
    """A chat page's: what it knows of the chat comes along"""
    more = {"id": session, "timestamp": 1795700000, "files": [], "models": [MODEL]}
    body = chat(question, is_second, answer=more, stream=True, stream_options={"include_usage": True})
    body["messages"][1] |= more
    return body | {"chat_id": session, "session_id": session, "features": {"web_search": False}, "variables": {}}


CHAT = "/v1/chat/completions"
CLIENT_SHAPES = (
    ClientShape(
        "claude-code",
        "/v1/messages?beta=true",
        claude_code,
        {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219", "x-app": "cli"},
    ),
    ClientShape("codex", "/v1/responses", codex, {"originator": "codex_exec", "session-id": "x"}),
    ClientShape("litellm", CHAT, litellm, {}),
    ClientShape("langchain", CHAT, langchain, {}),
    ClientShape("instructor", CHAT, instructor, {}),
    ClientShape("openai-agents", "/v1/responses", openai_agents, {}),
    ClientShape("vercel", CHAT, vercel, {}),
    ClientShape("llm", CHAT, llm_cli, {}),
    ClientShape("continue", CHAT, continue_dev, {}),
    ClientShape("open-webui", CHAT, open_webui, {}),
)
