"""What clients say about thinking reaches the templates that ask for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pagoda import LLM
from pagoda.server.asked.thinking import template_arguments
from server.running import MODEL, Running, running

QWEN = "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{%- endif %}"
DEEPSEEK = "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ '<think>' if thinking }}"
GPT_OSS = (
    "{%- if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
    "{{ message.thinking }}{% if 'thinking' in message %}{{ \"thinking\" }}{% endif %}{# thinking #}"
)


@pytest.mark.parametrize(
    ("template", "thinking", "effort", "arguments"),
    [
        (QWEN, False, None, {"enable_thinking": False}),
        (QWEN, True, None, {"enable_thinking": True}),
        (QWEN, None, None, {}),
        (QWEN, None, "none", {"enable_thinking": False}),
        (QWEN, None, "high", {"enable_thinking": True}),
        (QWEN, False, "high", {"enable_thinking": False}),
        (DEEPSEEK, True, "low", {"thinking": True}),
        (GPT_OSS, True, None, {}),
        (GPT_OSS, True, "high", {"reasoning_effort": "high"}),
        (GPT_OSS, None, "minimal", {"reasoning_effort": "low"}),
        (GPT_OSS, None, "xhigh", {"reasoning_effort": "high"}),
        (GPT_OSS, None, "none", {}),
        ("thinking enable_thinking {{ messages }}", True, "high", {}),
    ],
)
def test_templates_are_told_what_they_ask_for(
    template: str, thinking: bool | None, effort: str | None, arguments: dict[str, Any]
) -> None:
    assert template_arguments(template, thinking, effort) == arguments


# Shows what it is told, and what was thought before.
TOLD = (
    "{% for message in messages %}{{ message.reasoning_content }}{{ message.content }}{% endfor %}"
    "{{ 'It is to think for a long while.' if enable_thinking is defined and enable_thinking }}"
    "{{ 'Effort: ' + reasoning_effort if reasoning_effort is defined }}"
)
QUESTION = {"role": "user", "content": "The weather?"}
THINKING, EFFORT = "It is to think for a long while.", "Effort: high"


@pytest.fixture(scope="module")
def told(llm: LLM, tmp_path_factory: pytest.TempPathFactory):
    path: Path = tmp_path_factory.mktemp("template") / "template.jinja"
    path.write_text(TOLD)
    with running(llm, chat_template=path) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "more", "text"),
    [
        ("/v1/chat/completions", {}, ""),
        ("/v1/chat/completions", {"reasoning_effort": "high"}, THINKING + EFFORT),
        ("/v1/chat/completions", {"reasoning_effort": "none"}, ""),
        (
            "/v1/chat/completions",
            {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}},
            EFFORT,
        ),
        ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, THINKING),
        ("/v1/messages", {"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, EFFORT),
        ("/v1/messages", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, THINKING + EFFORT),
        ("/v1/responses", {"reasoning": {"effort": "high"}}, THINKING + EFFORT),
    ],
)
def test_each_api_tells_the_template(told: Running, path: str, more: dict[str, Any], text: str) -> None:
    asked = {"messages": [QUESTION], "max_tokens": 1}
    if path == "/v1/responses":
        asked = {"input": [QUESTION], "max_output_tokens": 1}
    kv = told.post(path, {"model": MODEL, **asked, **more}).json()["usage"]["kv"]
    expected = told.llm.tokenizer(QUESTION["content"] + text, add_special_tokens=False).input_ids
    assert kv["computed"] + kv["device"] == len(expected)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "assistant", "content": "Rain.", "reasoning_content": "Fog?"}]},
        ),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "Rain.", "reasoning": "Fog?"}]}),
        (
            "/v1/messages",
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "Fog?", "signature": "x"},
                            {"type": "text", "text": "Rain."},
                        ],
                    }
                ]
            },
        ),
        (
            "/v1/responses",
            {
                "input": [
                    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Fog?"}]},
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Rain."}]},
                ]
            },
        ),
    ],
)
def test_what_was_thought_goes_to_the_template(told: Running, path: str, body: dict[str, Any]) -> None:
    history = next(iter(body.values()))
    asked = {next(iter(body)): [*history, QUESTION]}
    most = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    kv = told.post(path, {"model": MODEL, most: 1, **asked}).json()["usage"]["kv"]
    expected = told.llm.tokenizer("Fog?Rain." + QUESTION["content"], add_special_tokens=False).input_ids
    assert kv["computed"] + kv["device"] == len(expected)
