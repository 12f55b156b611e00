"""Tool calls in a model's text: how its chat template has it write them, and how to read them back.

A format says where calls begin and end. What does not parse is text, as the model wrote it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is an object in JSON, as OpenAI has it."""

    name: str
    arguments: str
    call_id: str = field(default="", compare=False)


@dataclass(frozen=True)
class Pieces:
    """Text for the reader, and calls, in the order of their ends."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class ToolFormat:
    """Calls stand between `start` and `end` ("" is the end of the text).

    A text that begins with `bare` is a call without `start`, which tokenizers may leave out as a special token. Ids of
    calls have `id_length` characters, where the template insists on that.
    """

    name: str
    start: str
    end: str
    bare: str | None = None
    id_length: int | None = None


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>")
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", "", bare="[", id_length=9)
LLAMA3 = ToolFormat("llama3_json", "<|python_tag|>", "", bare="{")
# What is made to be a call is one JSON object, as a model with this format writes it.
FORCED = ToolFormat("forced", "\0", "", bare="{")


def find_format(template: str) -> ToolFormat | None:
    """The format of a chat template, by the words it uses; None if it knows no tools or writes calls in another way."""
    if "tools" not in template:
        return None
    if "<tool_call>" in template:
        return None if "<function=" in template else HERMES
    if "[TOOL_CALLS]" in template:
        return None if "[ARGS]" in template else MISTRAL
    return LLAMA3 if "<|python_tag|>" in template or "<|eom_id|>" in template else None


def forced_format(template: str) -> ToolFormat:
    """What the model writes where it has to call a tool, with ids that the template takes."""
    known = find_format(template)
    return FORCED if known is None else replace(FORCED, id_length=known.id_length)


def new_parser(template: str, is_forced: bool, id_prefix: str, most_calls: int | None = None) -> ToolParser | None:
    """A parser for one sample, if its calls are of a known format."""
    format = forced_format(template) if is_forced else find_format(template)
    return None if format is None else ToolParser(format, id_prefix, most_calls)


@dataclass
class ToolParser:
    """Reads one sample's text as it comes; calls beyond `most_calls` are left out."""

    format: ToolFormat
    id_prefix: str = "call_"
    most_calls: int | None = None
    num_calls: int = 0
    _held: str = ""
    _inside: bool = False
    _opened: str = ""
    _begun: bool = False
    _text: list[str] = field(default_factory=list)
    _calls: list[ToolCall] = field(default_factory=list)

    def push(self, text: str, is_last: bool = False) -> Pieces:
        """More of the text. What may still become a call is held back until it is known, or `is_last`."""
        self._held += text
        while self._step(is_last):
            pass
        pieces = Pieces("".join(self._text), tuple(self._calls))
        self.num_calls += len(self._calls)
        self._text.clear()
        self._calls.clear()
        return pieces

    def _step(self, is_last: bool) -> bool:
        """Take one piece off what is held; False if more has to come first."""
        if self._inside:
            return self._read_calls(is_last)
        if self.format.bare and not self._begun and (stripped := self._held.lstrip()):
            if self.format.start.startswith(stripped) and not is_last:
                return False
            self._begun = True
            if stripped.startswith(self.format.bare) and not stripped.startswith(self.format.start):
                self._inside, self._opened = True, ""
                return True
        before, found, after = self._held.partition(self.format.start)
        if found:
            self._say(before)
            self._held, self._inside, self._opened = after, True, found
            return True
        keep = 0 if is_last else _overlap(self._held, self.format.start)
        self._say(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return False

    def _read_calls(self, is_last: bool) -> bool:
        end = self.format.end
        body, found, after = self._held.partition(end) if end else (self._held, "", "")
        if not found and not is_last:
            return False
        calls = read_calls(body)
        if calls is None:
            self._text.append(self._opened + body + found)
        else:
            self._calls += [replace(call, call_id=self._new_id()) for call in calls]
            if self.most_calls is not None:
                del self._calls[max(self.most_calls - self.num_calls, 0) :]
        self._held, self._inside = after, False
        return bool(after)

    def _new_id(self) -> str:
        name = uuid4().hex
        return self.id_prefix + name if self.format.id_length is None else name[: self.format.id_length]

    def _say(self, text: str) -> None:
        # The blank lines between calls are not meant for the reader.
        if text.strip() or not (self.num_calls or self._calls):
            self._text.append(text)


def read_calls(text: str) -> list[ToolCall] | None:
    """The calls in a JSON object, a list of them, or several apart by semicolons; None if it is something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        parts = [_parsed(part) for part in text.split(";")]
        value = parts if len(parts) > 1 and None not in parts else None
    values = value if isinstance(value, list) else [value]
    calls = [_call(each) for each in values]
    return [call for call in calls if call is not None] if calls and None not in calls else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _parsed(arguments)
    if not isinstance(arguments, dict):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


def _overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`."""
    longest = min(len(text), len(marker) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(marker[:size])), 0)
