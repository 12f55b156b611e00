"""Defines the bodies of OpenAI's responses API, for text and the client's own functions."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo

from pagoda.server.asked.body import SIZE_CHECK, Body, Items
from pagoda.server.asked.leniency import FORGETTING, Leniency, replacing, skipping
from pagoda.server.openai.schema import (
    CacheBreakpoint,
    Effort,
    JsonObjectFormat,
    Retention,
    ServiceTier,
    StreamOptions,
    TextFormat,
    Verbosity,
)

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Body):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class OutputText(Body):
    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class Refusal(Body):
    type: Literal["refusal"]
    refusal: str


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "input_text", "text": text}


Content = Annotated[InputText | OutputText | Refusal, Field(discriminator="type")]
Contents = Annotated[Items[Content], replacing(("input_text", "output_text", "refusal"), _text_part)]


class MessageItem(Body):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Contents
    id: str | None = None
    status: Status | None = None
    phase: Annotated[Literal["commentary", "final_answer"] | None, FORGETTING] = None


class FunctionCallItem(Body):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str = "{}"
    id: str | None = None
    status: Status | None = None


class FunctionCallOutputItem(Body):
    type: Literal["function_call_output"]
    call_id: str
    output: str | Annotated[Items[InputText], replacing(("input_text",), _text_part)]
    id: str | None = None
    status: Status | None = None


class ReasoningItem(Body):
    """Of an earlier answer, for templates that show it again."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: str | None = None
    status: Status | None = None

    @property
    def text(self) -> str:
        """What was thought, as far as it can be read."""
        parts = (part for part in self.content or () if isinstance(part, dict))
        return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _kind(item: Any) -> str:
    """The type of an input item; messages need not have one."""
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return str(kind)


def _as_functions(items: Any, info: ValidationInfo) -> Any:
    """Calls of tools that are no functions, and what came of them, as if they were: their words are in the history."""
    if not isinstance(info.context, Leniency) or not isinstance(items, list):
        return items
    return [_as_function(item) if isinstance(item, dict) else item for item in items]


def _as_function(item: dict[str, Any]) -> dict[str, Any]:
    call_id, kind = item.get("call_id"), item.get("type")
    if kind in ("custom_tool_call_output", "local_shell_call_output", "shell_call_output"):
        return {"type": "function_call_output", "call_id": call_id, "output": item.get("output")}
    if kind == "custom_tool_call":
        arguments = json.dumps({"input": item.get("input")})
        return {"type": "function_call", "call_id": call_id, "name": item.get("name"), "arguments": arguments}
    if kind in ("local_shell_call", "shell_call"):
        arguments = json.dumps(item.get("action"))
        return {"type": "function_call", "call_id": call_id, "name": "shell", "arguments": arguments}
    return item


ITEM_KINDS = ("message", "function_call", "function_call_output", "reasoning")
InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _kind,
        custom_error_type="unknown_item",
        custom_error_message="There is no such type of item; leave it out.",
    ),
]


class FunctionTool(Body):
    type: Literal["function"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Body):
    type: Literal["function"]
    name: str


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


Format = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class TextConfig(Body):
    format: Format | None = None
    verbosity: Verbosity = None  # without effect


Summary = Annotated[Literal["auto", "concise", "detailed"] | None, FORGETTING]


class Reasoning(Body):
    """How hard to think goes to templates that ask; the rest is without effect."""

    effort: Effort = None
    context: Annotated[Literal["auto", "current_turn", "all_turns"] | None, FORGETTING] = None
    mode: str | None = None
    generate_summary: Summary = None
    summary: Summary = None


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
    SIZE_CHECK,
]


Included = Annotated[Literal["message.output_text.logprobs", "reasoning.encrypted_content"] | None, FORGETTING]


class CacheOptions(Body):
    mode: Literal["implicit", "explicit"] = "implicit"
    ttl: Literal["30m", "12h"] = "30m"
    comparison_response_id: str | None = None
    prewarm: bool = False


class ResponseBody(Body):
    model: str
    input: str | Annotated[Items[InputItem], skipping(*ITEM_KINDS, default="message"), BeforeValidator(_as_functions)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: Items[Included] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    text: TextConfig | None = None
    tools: Annotated[Items[FunctionTool], skipping("function")] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: Retention = None
    background: Literal[False] | None = None
    truncation: Annotated[Literal["disabled"] | None, FORGETTING] = None
    # Without effect here.
    reasoning: Reasoning | None = None
    max_tool_calls: int | None = Field(None, ge=1)
    metadata: Metadata | None = None
    service_tier: ServiceTier = None
    safety_identifier: str | None = None
    user: str | None = None
    # Ours, as in the other APIs
    cache_salt: str | None = None
    cached_content: str | None = None
    kv_compression: str | None = None
    sparse_attention: str | None = None
    context_full: str | None = None
    memory_full: str | None = None
    seed: int | None = None
    ignore_eos: bool = False
