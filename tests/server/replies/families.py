"""Chat templates that write calls as those of each family do, in words of our own, and what they make of calls.

The published templates say more around the calls; with `PAGODA_TEMPLATES` set to a folder of them those are tested too.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda.chat.template import Rendering, Templates
from pagoda.server.replies.dialects import (
    DEEPSEEK,
    DEEPSEEK_FENCED,
    GLM,
    HARMONY,
    HERMES,
    KIMI,
    LLAMA3,
    MISTRAL,
    MISTRAL_IDS,
    MISTRAL_NAMES,
    XML,
    Dialect,
    find_dialect,
)
from pagoda.server.replies.pieces import Block, ToolCall, blocks_of
from pagoda.server.replies.reader import ReplyReader, Terms
from pagoda.server.replies.style import ReplyStyle
from pagoda.server.replies.thoughts import find_thoughts, has_opened

SCHEMA = {
    "type": "object",
    "properties": {
        "place": {"type": "string"},
        "days": {"type": "integer"},
        "dry": {"type": "boolean"},
        "near": {"type": "array"},
        "rate": {"type": "number"},
        "more": {"anyOf": [{"type": "object"}, {"type": "null"}]},
    },
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Of a place.", "parameters": SCHEMA}}
    for name in ("weather", "tide")
]
TERMS = Terms(tools=TOOLS)
RENDERER = Templates(None)
# Words that look like the markup of every family.
HARD = 'Dover "</tool_call>" {\n</parameter>\n</arg_value>[TOOL_CALLS] <|call|> é'
FULL = {"place": HARD, "days": 3, "dry": True, "near": ["Deal", {}], "rate": 1.5, "more": None}
CALLS = (("weather", FULL), ("tide", {"place": "5"}))

START = "{% for message in messages %}{% if message.role == 'user' %}[user]{{ message.content }}{% else %}[answer]"
EACH = "{% for call in message.tool_calls %}{% set function = call.function %}"
END = "{% endif %}{% endfor %}{% if add_generation_prompt %}[answer]{% endif %}{# tools #}"

NAMED_JSON = '{"name": "{{ function.name }}", "arguments": {{ function.arguments | tojson }}}'
HERMES_CALLS = f"{EACH}\n<tool_call>\n{NAMED_JSON}\n</tool_call>{{% endfor %}}"
XML_CALLS = (
    EACH + "\n<tool_call>\n<function={{ function.name }}>\n{% for key, value in function.arguments.items() %}"
    "<parameter={{ key }}>\n{{ value | tojson if value is mapping or (value is iterable and value is not string) "
    "else value }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}"
)
GLM_CALLS = (
    EACH + "\n<tool_call>{{ function.name }}\n{% for key, value in function.arguments.items() %}"
    "<arg_key>{{ key }}</arg_key>\n<arg_value>{{ value if value is string else value | tojson }}</arg_value>\n"
    "{% endfor %}</tool_call>{% endfor %}"
)
LLAMA_CALLS = EACH + '{"name": "{{ function.name }}", "parameters": {{ function.arguments | tojson }}}; {% endfor %}'
MISTRAL_LIST = f"[TOOL_CALLS] [{EACH}{NAMED_JSON}{{{{ '' if loop.last else ', ' }}}}{{% endfor %}}]"
NAMED_CALLS = EACH + "[TOOL_CALLS]{{ function.name }}[ARGS]{{ function.arguments | tojson }}{% endfor %}"
IDENTIFIED_CALLS = (
    EACH + "[TOOL_CALLS]{{ function.name }}[CALL_ID]{{ call.id }}[ARGS]{{ function.arguments | tojson }}{% endfor %}"
)
DEEPSEEK_FENCES = (
    "<BARtool▁calls▁beginBAR>"
    + EACH
    + "{{ '' if loop.first else '\n' }}<BARtool▁call▁beginBAR>function<BARtool▁sepBAR>"
    "{{ function.name }}\n```json\n{{ function.arguments | tojson }}\n```<BARtool▁call▁endBAR>{% endfor %}"
    "<BARtool▁calls▁endBAR>"
).replace("BAR", "\uff5c")
DEEPSEEK_PLAIN = (
    "<BARtool▁calls▁beginBAR>" + EACH + "<BARtool▁call▁beginBAR>{{ function.name }}<BARtool▁sepBAR>"
    "{{ function.arguments | tojson }}<BARtool▁call▁endBAR>{% endfor %}<BARtool▁calls▁endBAR>"
).replace("BAR", "\uff5c")
KIMI_CALLS = (
    "<|tool_calls_section_begin|>" + EACH + "<|tool_call_begin|>functions.{{ function.name }}:{{ loop.index0 }}"
    "<|tool_call_argument_begin|>{{ function.arguments | tojson }}<|tool_call_end|>{% endfor %}"
    "<|tool_calls_section_end|>"
)
HARMONY_CALLS = (
    EACH + "{{ '' if loop.first else '<|start|>assistant' }} to=functions.{{ function.name }}<|channel|>commentary json"
    "<|message|>{{ function.arguments | tojson }}<|call|>{% endfor %}"
)
HARMONY_BEHIND = (
    EACH + "{{ '' if loop.first else '<|start|>assistant' }}<|channel|>commentary to=functions.{{ function.name }} "
    "<|constrain|>json<|message|>{{ function.arguments | tojson }}<|call|>{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """A template, and the dialect that its models speak. Some write one call at a time."""

    template: str
    dialect: Dialect
    most_calls: int = 2

    def reply(self, calls: tuple[tuple[str, dict[str, Any]], ...]) -> tuple[str, str]:
        """The prompt, and what the template has the model say then, up to its end."""
        answer = {"role": "assistant", "content": "", "tool_calls": [_call(*each) for each in calls]}
        prompt = self.render(True)
        whole = self.render(False, answer)
        pairs = zip(prompt, whole, strict=False)
        length = next((place for place, (left, right) in enumerate(pairs) if left != right), len(prompt))
        return whole[:length], whole[length:]

    def render(self, adds_generation_prompt: bool, *messages: dict[str, Any]) -> str:
        rendering = Rendering(
            template=self.template,
            messages=[{"role": "user", "content": "The weather?"}, *messages],
            variables={
                "tools": TOOLS,
                "add_generation_prompt": adds_generation_prompt,
                "bos_token": "",
                "eos_token": "",
            },
            mark=None,
            now="2025-01-01T00:00:00",
            most_characters=1 << 20,
        )
        return RENDERER.render(rendering)

    def style(self, prompt: str) -> ReplyStyle:
        thoughts = find_thoughts(self.template)
        return ReplyStyle(find_dialect(self.template), thoughts, thoughts is not None and has_opened(thoughts, prompt))


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"call{len(name):05d}", "type": "function", "function": {"name": name, "arguments": arguments}}


def read(
    text: str, style: ReplyStyle, terms: Terms = TERMS, size: int | None = None, is_cut: bool = False
) -> list[Block]:
    """The blocks of a reply, as a whole or of pieces of `size`."""
    reader = ReplyReader(style, terms, is_whole=size is None)
    step = size or max(len(text), 1)
    pieces = [piece for start in range(0, len(text), step) for piece in reader.push(text[start : start + step])]
    return blocks_of([*pieces, *reader.push("", is_last=True, is_cut=is_cut)])


def calls_in(blocks: list[Block]) -> tuple[tuple[str, dict[str, Any]], ...]:
    return tuple((block.name, json.loads(block.arguments)) for block in blocks if isinstance(block, ToolCall))


FAMILIES = {
    name: Family(START + calls + END, dialect)
    for name, calls, dialect in (
        ("hermes", HERMES_CALLS, HERMES),
        ("qwen3-coder", XML_CALLS + "{# <parameter= #}", XML),
        ("glm", GLM_CALLS, GLM),
        ("llama", LLAMA_CALLS + "{# <|python_tag|> #}", LLAMA3),
        ("mistral", MISTRAL_LIST, MISTRAL),
        ("mistral-names", NAMED_CALLS, MISTRAL_NAMES),
        ("mistral-ids", IDENTIFIED_CALLS, MISTRAL_IDS),
        ("deepseek-v3", DEEPSEEK_FENCES, DEEPSEEK_FENCED),
        ("deepseek-v3.1", DEEPSEEK_PLAIN, DEEPSEEK),
        ("kimi", KIMI_CALLS, KIMI),
        ("gpt-oss", HARMONY_CALLS, HARMONY),
        ("gpt-oss-behind", HARMONY_BEHIND, HARMONY),
    )
}

# Of the published templates those that say nothing which Jinja's sandbox, or these schemas, do not let them.
PUBLISHED = {
    "Qwen-Qwen2.5-7B-Instruct": HERMES,
    "Qwen-Qwen3-0.6B": HERMES,
    "Qwen3-Coder": XML,
    "Qwen3.5-4B": XML,
    "meta-llama-Llama-3.1-8B-Instruct": LLAMA3,
    "meta-llama-Llama-3.2-3B-Instruct": LLAMA3,
    "meta-llama-Llama-3.3-70B-Instruct": LLAMA3,
    "mistralai-Mistral-Nemo-Instruct-2407": MISTRAL,
    "Mistral-Small-3.2-24B-Instruct-2506": MISTRAL_IDS,
    "mistralai-Ministral-3-14B-Reasoning-2512": MISTRAL_NAMES,
    "deepseek-ai-DeepSeek-V3.1": DEEPSEEK,
    "GLM-4.6": GLM,
    "GLM-4.7-Flash": GLM,
    "moonshotai-Kimi-K2": KIMI,
    "openai-gpt-oss-120b": HARMONY,
}
FOLDER = os.environ.get("PAGODA_TEMPLATES")
if FOLDER is not None:
    FAMILIES |= {
        name: Family((Path(FOLDER) / f"{name}.jinja").read_text(), dialect, 1 if dialect in (LLAMA3, HARMONY) else 2)
        for name, dialect in PUBLISHED.items()
    }
