"""Defines the bodies of OpenAI's completions and chat completions, with vLLM's extensions.

Fields of the API that change nothing here are accepted and named so; those that would change the answer and cannot be
honoured are refused by name. Fields that do not exist, and content that no model of text reads, are left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pagoda.server.asked.body import Body, Entries, Items, TokenIds
from pagoda.server.asked.leniency import DROPPING, FORGETTING, replacing, skipping
from pagoda.server.openai.guided import Guided

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Retention = Annotated[Literal["in_memory", "24h"] | None, FORGETTING]
ServiceTier = Annotated[Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None, FORGETTING]
Effort = Annotated[Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None, FORGETTING]
Verbosity = Annotated[Literal["low", "medium", "high"] | None, FORGETTING]
MAX_STOP = 64


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool | None = None  # without effect: chunks are not padded


class CacheBreakpoint(Body):
    mode: Literal["explicit"] = "explicit"
    ttl: Literal["30m", "12h"] | None = None


class PromptCacheOptions(Body):
    mode: Literal["implicit", "explicit"] = "implicit"
    ttl: Literal["30m"] = "30m"


class Sampling(Guided):
    """What completions and chat completions have in common."""

    model: str
    n: int | None = Field(None, ge=1, le=128)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Entries[Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = None
    stop: str | Items[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    # Without effect: they are for billing and routing.
    user: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Retention = None
    # vLLM's
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    min_tokens: int | None = Field(None, ge=0)
    stop_token_ids: Items[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    cache_salt: str | None = None
    cached_content: str | None = None  # ours: a name of /v1/kv/caches
    kv_compression: str | None = None  # ours: which tokens are kept
    sparse_attention: str | None = None  # ours: how much of its pages generated tokens read
    context_full: str | None = None  # ours: what becomes of a sequence there
    memory_full: str | None = None  # ours: and where pages are short
    return_token_ids: bool = False
    request_id: str | None = None  # without effect: every request has one of its own


class CompletionBody(Sampling):
    prompt: str | Items[str] | TokenIds | Items[TokenIds]
    max_tokens: int | None = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = False
    best_of: int | None = None
    suffix: Literal[""] | None = None


class TextPart(Body):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class RefusalPart(Body):
    type: Literal["refusal"]
    refusal: str


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


Content = Annotated[
    Items[Annotated[TextPart | RefusalPart, Field(discriminator="type")]],
    replacing(("text", "refusal"), _text_part),
]


class FunctionCall(Body):
    name: str
    arguments: str = "{}"


class ToolCall(Body):
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    role: Role
    content: str | Content | None = None
    name: str | None = None
    tool_calls: Annotated[Items[ToolCall], skipping("function", default="function")] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    # What the model thought, by the names that servers give it: for templates that show it again.
    reasoning_content: str | None = None
    reasoning: str | None = None
    # As answers have them; without effect.
    annotations: list[Any] | None = None
    audio: Annotated[None, DROPPING] = None
    function_call: Annotated[None, DROPPING] = None


class FunctionDefinition(Body):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionDefinition


Tools = Annotated[Items[Tool], skipping("function")]


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")  # llama.cpp's


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatBody(Sampling):
    messages: Items[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    # Without effect here.
    metadata: Entries[str] | None = None
    store: bool | None = None
    service_tier: ServiceTier = None
    safety_identifier: str | None = None
    verbosity: Verbosity = None
    modalities: Items[Annotated[Literal["text"] | None, FORGETTING]] | None = None
    reasoning_effort: Effort = None  # for templates that ask
    # vLLM's
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeBody(Body):
    """Of `/tokenize`: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Items[Message] | None = Field(None, min_length=1)
    tools: Tools | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeBody(Body):
    model: str | None = None
    tokens: TokenIds
