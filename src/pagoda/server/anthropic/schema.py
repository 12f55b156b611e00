"""Defines the bodies of Anthropic's messages API, as far as a model that reads and writes text can honour them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pagoda.server.asked.body import Body, Items
from pagoda.server.asked.leniency import FORGETTING, replacing, skipping


class CacheControl(Body):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] = "5m"


class TextBlock(Body):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: list[Any] | None = None  # as answers have them; without effect


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


Texts = Annotated[Items[TextBlock], replacing(("text",), _text_block)]


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: dict[str, Any] | None = None  # as answers have it; without effect


class ToolResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Texts | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class ThinkingBlock(Body):
    """Of an earlier answer, for templates that show it again."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Body):
    type: Literal["redacted_thinking"]
    data: str


Block = Annotated[
    TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock, Field(discriminator="type")
]


BLOCK_KINDS = ("text", "tool_use", "tool_result", "thinking", "redacted_thinking")


class Message(Body):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[Items[Block], replacing(BLOCK_KINDS, _text_block)]


class Tool(Body):
    """A tool of the client's; those that Anthropic runs itself there are none of."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None
    strict: bool | None = None
    input_examples: Items[dict[str, Any]] | None = None
    eager_input_streaming: bool | None = None  # without effect: arguments are always sent as they come


class ToolChoiceAuto(Body):
    type: Literal["auto"]
    disable_parallel_tool_use: bool | None = None


class ToolChoiceAny(Body):
    type: Literal["any"]
    disable_parallel_tool_use: bool | None = None


class ToolChoiceTool(Body):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class ToolChoiceNone(Body):
    type: Literal["none"]


ToolChoice = Annotated[ToolChoiceAuto | ToolChoiceAny | ToolChoiceTool | ToolChoiceNone, Field(discriminator="type")]


class Metadata(Body):
    user_id: str | None = None


class Diagnostics(Body):
    previous_message_id: str | None = None


class Thinking(Body):
    """Whether to think goes to templates that can be told; how long is up to the model."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=0)
    display: Annotated[Literal["summarized", "omitted"] | None, FORGETTING] = None

    @property
    def is_asked(self) -> bool | None:
        """None leaves it to the model."""
        return None if self.type == "adaptive" else self.type == "enabled"


class JsonFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    format: JsonFormat | None = None
    effort: Annotated[Literal["low", "medium", "high", "xhigh", "max"] | None, FORGETTING] = None


class CountBody(Body):
    """Of `/v1/messages/count_tokens`."""

    model: str
    messages: Items[Message] = Field(min_length=1)
    system: str | Texts | None = None
    tools: Annotated[Items[Tool], skipping("custom", default="custom")] | None = None
    tool_choice: ToolChoice | None = None
    cache_control: CacheControl | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    # Ours, as in OpenAI's API
    cache_salt: str | None = None
    cached_content: str | None = None


class MessagesBody(CountBody):
    max_tokens: int = Field(ge=0)
    stop_sequences: Items[str] | None = Field(None, max_length=64)
    stream: bool | None = False
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    diagnostics: Diagnostics | None = None
    kv_compression: str | None = None  # ours
    sparse_attention: str | None = None  # ours
    context_full: str | None = None  # ours
    memory_full: str | None = None  # ours
    # Without effect here.
    metadata: Metadata | None = None
    service_tier: Annotated[Literal["auto", "standard_only"] | None, FORGETTING] = None
    # Ours, as in OpenAI's API
    seed: int | None = None
    ignore_eos: bool = False
