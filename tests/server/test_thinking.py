"""What clients say about thinking reaches the templates that ask for it."""

from __future__ import annotations

from typing import Any

import pytest

from pagoda.server.thinking import template_arguments

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
