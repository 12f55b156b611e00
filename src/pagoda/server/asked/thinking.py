"""Tells a chat template that asks for it what the client says about thinking.

Knows the names that templates give such arguments, and no API.
"""

from __future__ import annotations

import re
from typing import Any

BLOCK = re.compile(r"\{[%{](.*?)[%}]\}", re.DOTALL)
COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
STRING = re.compile(r'"(?:\\.|[^"\\])*"' + r"|'(?:\\.|[^'\\])*'", re.DOTALL)

SWITCHES = ("enable_thinking", "thinking")
EFFORT = "reasoning_effort"
NO_EFFORT = "none"
# Templates know three levels; clients know levels beyond.
LEVELS = {"minimal": "low", "xhigh": "high", "max": "high"}


def template_arguments(template: str, thinking: bool | None, effort: str | None) -> dict[str, Any]:
    """Arguments for a chat template: whether to think, and how hard. What it has no variable for is left out.

    An effort says as well whether to think, unless `thinking` does.
    """
    if thinking is None and effort is not None:
        thinking = effort != NO_EFFORT
    arguments: dict[str, Any] = {}
    if thinking is not None:
        arguments |= {name: thinking for name in SWITCHES if _has_variable(template, name)}
    if effort not in (None, NO_EFFORT) and _has_variable(template, EFFORT):
        arguments[EFFORT] = LEVELS.get(effort, effort)
    return arguments


def _has_variable(template: str, name: str) -> bool:
    """Whether an expression has the name by itself: not in text, nor as a part of something else."""
    blocks = BLOCK.findall(COMMENT.sub("", template))
    variable = re.compile(rf"(?<![\w.]){name}(?!\w)")
    return any(variable.search(STRING.sub("", block)) for block in blocks)
