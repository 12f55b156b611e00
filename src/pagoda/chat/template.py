"""Renders chat templates, to the letter as transformers does, in a process that is confined.

A template comes with a checkpoint and may do anything that its language can, so this runs in a child of
`pagoda.confined`, which needs jinja2 for it and neither transformers nor torch. Does not know tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MOST_COMPILED = 16

# Other names under which callers give what a message's author thought; templates read the first, gpt-oss's the second.
REASONING = ("reasoning_content", "thinking", "reasoning")


class OutputTooLongError(Exception):
    """The template writes more than any prompt may have."""


@dataclass(frozen=True)
class Rendering:
    """What to render. With a `mark`, a word that occurs nowhere else, the last message goes on.

    `now` is what a template takes for the time, in ISO's form.
    """

    template: str
    messages: list[dict[str, Any]]
    variables: dict[str, Any]
    mark: str | None
    now: str
    most_characters: int


class Templates:
    """Renders, and keeps the last templates compiled."""

    def __init__(self, _: None) -> None:
        self._now = ""
        environment = _new_environment()
        environment.globals["strftime_now"] = self._format_now
        self._compiled: Callable[[str], Template] = lru_cache(MOST_COMPILED)(environment.from_string)

    def render(self, rendering: Rendering) -> str:
        self._now = rendering.now
        messages = [_read(message) for message in rendering.messages]
        if rendering.mark is not None:
            messages[-1] = messages[-1] | {"content": messages[-1]["content"] + rendering.mark + " "}
        pieces, num_characters = [], 0
        for piece in self._compiled(rendering.template).generate({"messages": messages, **rendering.variables}):
            num_characters += len(piece)
            if num_characters > rendering.most_characters:
                raise OutputTooLongError(f"more than {rendering.most_characters} characters")
            pieces.append(piece)
        text = "".join(pieces)
        return text if rendering.mark is None else _up_to(rendering.mark, text)

    def _format_now(self, format: str) -> str:
        return datetime.fromisoformat(self._now).strftime(format)


def _read(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what is none, and what its author thought under the names that templates read."""
    read = {name: value for name, value in message.items() if value is not None}
    thought = next((read[name] for name in REASONING if name in read), None)
    return read if thought is None else {"thinking": thought, **read, "reasoning_content": thought}


def _up_to(mark: str, text: str) -> str:
    """What comes before the last `mark`; a template that trims the message has taken the space after it away."""
    before, found, after = text.rpartition(mark)
    if not found:
        raise TemplateError("it leaves out the message to go on with")
    return before if after.startswith(" ") else before.rstrip()


def _new_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "dict": SafeDict(), "namespace": SafeNamespace}
    return environment


class GenerationBlock(Extension):
    """{% generation %} stands around what the model wrote; it shows as what is inside."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class SafeDict:
    """What `dict` is in a template: no class, of which it could take more than that."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict(*values, **named)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        return dict.fromkeys(*values)


class SafeNamespace(Namespace):
    """A namespace without names that Python itself reads."""

    def __init__(*values: Any, **named: Any) -> None:
        attributes = dict(*values[1:], **named)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(values[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no {name!r}: names in it do not begin with an underscore")


def _raise(message: Any) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the escapes of HTML that jinja's own has."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
