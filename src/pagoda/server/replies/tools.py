"""Knows of a client's tools what reading calls needs: their names, and the types of their arguments."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pagoda.server.replies.json_text import parsed
from pagoda.structured.schema import target

MOST_REFERENCES = 16
# How Python writes what JSON writes in lower case: templates show the model values of either kind.
AS_PYTHON = {"True": True, "False": False, "None": None}
KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}


class GivenTools:
    """`tools` are in the words of chat templates."""

    def __init__(self, tools: Iterable[Mapping[str, Any]] = ()) -> None:
        functions = [tool["function"] for tool in tools]
        self._parameters = {function["name"]: function.get("parameters") or {} for function in functions}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._parameters)

    def value(self, name: str, key: str, text: str) -> str:
        """The argument `key` of a call of the tool `name`, which was written as bare text, in JSON.

        It is a string where the schema says so, or nothing else fits.
        """
        root = self._parameters.get(name, {})
        properties = root.get("properties")
        schema = properties.get(key) if isinstance(properties, Mapping) else None
        kinds = frozenset(kinds_of(schema, root))
        if kinds == {"string"}:
            return json.dumps(text, ensure_ascii=False)
        try:
            value = AS_PYTHON[text.strip()] if text.strip() in AS_PYTHON else parsed(text)
        except ValueError:
            value = text
        if kinds and not _fits(value, kinds):
            value = text
        return json.dumps(value, ensure_ascii=False)


def kinds_of(schema: Any, root: Mapping[str, Any], most_references: int = MOST_REFERENCES) -> Sequence[str]:
    """The types that a schema within `root` allows, as far as it names them; none if it may allow all."""
    if not isinstance(schema, Mapping) or not most_references:
        return ()
    if isinstance(schema.get("$ref"), str):
        return kinds_of(target(schema["$ref"], root), root, most_references - 1)
    named = schema.get("type")
    if isinstance(named, str):
        return (named,)
    if isinstance(named, list):
        return [each for each in named if isinstance(each, str)]
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        return [KINDS.get(type(value), "null") for value in values]
    choices = schema.get("anyOf", schema.get("oneOf"))
    found = [kinds_of(each, root, most_references - 1) for each in choices] if isinstance(choices, list) else []
    return [kind for kinds in found for kind in kinds] if all(found) else ()


def _fits(value: Any, kinds: frozenset[str]) -> bool:
    kind = KINDS.get(type(value), "null")
    return kind in kinds or (kind == "integer" and "number" in kinds) or (kind == "number" and "integer" in kinds)
