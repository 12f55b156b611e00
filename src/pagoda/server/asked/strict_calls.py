"""Holds calls of strict tools to their schemas, and leaves the other text to the model.

The form is a grammar of llguidance: text until the mark that begins a call, then what the dialect's shape says. A call
without such a mark could be text as well, so it is left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pagoda.sampling_params import StructuredOutputs
from pagoda.server.asked.forms import ANY_OBJECT, call_schema, parameters_of
from pagoda.server.replies.dialects import Dialect
from pagoda.server.replies.shapes import CallShape, Slot, Words
from pagoda.server.replies.tools import kinds_of
from pagoda.structured.schema import enforceable, rebased
from pagoda.structured.source import WHITESPACE

TERMINALS = {Slot.GAP: "GAP", Slot.NUMBER: "NUMBER", Slot.ID: "ID"}
ANYTHING = r"/(.|\n)*/"

ROOT = "parameters"
ROOT_PLACE = f"#/$defs/{ROOT}"


def strict_form(
    tools: Sequence[Mapping[str, Any]], strict: Collection[str], dialect: Dialect | None, tokenizer: Any
) -> StructuredOutputs | None:
    """Text in which every call is one of `tools`, in the words of chat templates; arguments of those whose names are in
    `strict` fit their schemas. None if calls of this dialect cannot be held to that."""
    if not strict or dialect is None or dialect.shape is None:
        return None
    functions = [tool["function"] for tool in tools]
    known = [each if each["name"] in strict else {**each, "parameters": ANY_OBJECT} for each in functions]
    return StructuredOutputs(grammar=_Grammar(dialect, dialect.shape, tokenizer.added_tokens_decoder).text(known))


class _Grammar:
    """A mark may be just text, or a token of its own, which is none in llguidance's eyes. Text must not spell such a
    token, since it would be read as the mark all the same.

    Other tokens that were added to the vocabulary and show in the text, such as `<think>`, may stand anywhere.
    """

    def __init__(self, dialect: Dialect, shape: CallShape, added_tokens: Mapping[int, Any]) -> None:
        self._shape = shape
        self._ids = {token.content: token_id for token_id, token in added_tokens.items()}
        marks = {*dialect.starts, *dialect.marks}
        self._shown = [
            str(token_id)
            for token_id, token in added_tokens.items()
            if not token.special and token.content not in marks
        ]
        # What begins a call elsewhere, or is a token and so cannot be spelled.
        self._unspelled = [mark for mark in dialect.starts if mark != shape.start or mark in self._ids]
        self._rules: list[str] = []

    def text(self, functions: Sequence[Mapping[str, Any]]) -> str:
        """Text with calls of `functions` in it."""
        shape = self._shape
        begins = f"TEXT {self._words(shape.start)}" if shape.start in self._ids else "opened"
        calls = self._calls(functions)
        shown = f"TEXT <[{','.join(self._shown)}]>" if self._shown else ""
        if shape.end:
            many = "+" if shape.has_sections else ""
            call = f"{begins} ({calls}){many} {self._words(shape.end)}"
            start = f"(call{' | ' + shown if shown else ''})* TEXT"
        else:  # then there is nothing but calls
            call = f"{begins} ({calls}) ({self._words(shape.start)} ({calls}))*"
            start = f"({shown})* (call | TEXT)" if shown else "call | TEXT"
        unspelled = "|".join(_escaped(mark) for mark in self._unspelled)
        lines = [
            "%llguidance {}",
            f"start: {start}",
            f"call: {call}",
            *self._rules,
            f"TEXT: {ANYTHING}" + (rf" & ~/(.|\n)*({unspelled})(.|\n)*/" if unspelled else ""),
            f"ANYTHING: {ANYTHING}",
            r"GAP: /[ \n]?/",
            r"NUMBER: /[0-9]{1,4}/",
            r"ID: /[a-zA-Z0-9]{9}/",
            r"KEY: /[^<>\n]{1,256}/",
        ]
        if shape.start not in self._ids:
            lines.append(f"opened[lazy]: TEXT {json.dumps(shape.start)}")
        return "\n".join(lines)

    def _calls(self, functions: Sequence[Mapping[str, Any]]) -> str:
        """One call of any of `functions`."""
        words = self._shape.call
        if Slot.CALL in words:
            return self._sequence(words, {Slot.CALL: self._json(call_schema(functions))})
        if Slot.CALLS in words:
            items = call_schema(functions, "#/items")
            for each in items.get("anyOf", [items]):
                each["properties"]["id"] = {"type": "string"}  # as templates show them
            return self._sequence(words, {Slot.CALLS: self._json({"type": "array", "items": items, "minItems": 1})})
        return " | ".join(self._call(function) for function in functions)

    def _call(self, function: Mapping[str, Any]) -> str:
        parameters = parameters_of(function)
        slots = {Slot.NAME: json.dumps(function["name"])}
        if Slot.ARGUMENTS in self._shape.call:
            slots[Slot.ARGUMENTS] = self._json({**ANY_OBJECT, **parameters})
        else:
            slots[Slot.PAIRS] = self._pairs(parameters)
        return self._sequence(self._shape.call, slots)

    def _pairs(self, parameters: Mapping[str, Any]) -> str:
        """Arguments in the order of their schema; any where it names none."""
        properties = parameters.get("properties")
        if not isinstance(properties, Mapping):
            return f"({self._pair('KEY', None, parameters)})*"
        named = parameters.get("required")
        required = named if isinstance(named, list) else []
        pairs = [
            f"({self._pair(json.dumps(key), schema, parameters)}){'' if key in required else '?'}"
            for key, schema in properties.items()
            if schema is not False
        ]
        return " ".join(pairs) or '""'

    def _pair(self, key: str, schema: Any, root: Mapping[str, Any]) -> str:
        """One argument; without a schema it is bare text."""
        words = self._shape.pair
        place = words.index(Slot.VALUE)
        before = self._sequence(words[:place], {Slot.KEY: key})
        if schema is None or set(kinds_of(schema, root)) == {"string"}:
            choices = _choices(schema)
            if not choices:
                return f"{before} {self._bare(words[place + 1 :])}"
            value = "(" + " | ".join(map(json.dumps, choices)) + ")"
        else:
            value = self._json(_apart(schema, root))
        return f"{before} {value} {self._sequence(words[place + 1 :], {})}"

    def _bare(self, words: Words) -> str:
        """Text up to the first of `words`, and these."""
        end, *rest = words
        if end in self._ids:
            return f"ANYTHING {self._sequence(words, {})}"
        name = f"bare{len(self._rules)}"
        self._rules.append(f"{name}[lazy]: ANYTHING {json.dumps(end)}")
        return f"{name} {self._sequence(tuple(rest), {})}"

    def _json(self, schema: Any) -> str:
        name = f"json{len(self._rules)}"
        spaced = {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}} if isinstance(schema, Mapping) else schema
        self._rules.append(f"{name}: %json {json.dumps(enforceable(spaced))}")
        return name

    def _sequence(self, words: Words, slots: Mapping[Slot, str]) -> str:
        return " ".join(
            self._words(word) if isinstance(word, str) else slots.get(word) or TERMINALS[word] for word in words
        )

    def _words(self, text: str) -> str:
        return f"<[{self._ids[text]}]>" if text in self._ids else json.dumps(text)


def _escaped(mark: str) -> str:
    return re.escape(mark).replace("/", r"\/")


def _apart(schema: Any, root: Mapping[str, Any]) -> Any:
    """A schema within `root` as a whole one, which has all of `root` for its references."""
    if not isinstance(schema, Mapping):
        return schema
    return {**rebased(schema, ROOT_PLACE), "$defs": {ROOT: rebased(root, ROOT_PLACE)}}


def _choices(schema: Any) -> list[str]:
    """The strings that are all that a schema allows."""
    if not isinstance(schema, Mapping):
        return []
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
