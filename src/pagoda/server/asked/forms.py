"""Makes the form that an output must have: JSON of a schema, or a call of one of the tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pagoda.errors import HttpError
from pagoda.sampling_params import StructuredOutputs
from pagoda.structured.schema import GUIDANCE, lenient, rebased, unenforced

ANY_OBJECT = {"type": "object"}
NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
# What a schema may have that says nothing of an object's properties.
SAYS_NOTHING = frozenset({"type", "properties", "required", "title", "description", "$schema", "$defs"})


def json_form(schema: Mapping[str, Any] | None, strict_param: str | None = None) -> StructuredOutputs:
    """JSON of a schema, or any object. What of a schema cannot be enforced is left out (see `left_out`).

    Raises HttpError for a schema that has such, if the field `strict_param` says that it is strict.
    """
    if schema is None:
        return StructuredOutputs(json_object=True)
    if strict_param is None:
        return StructuredOutputs(json=lenient(schema))
    check_strict(schema, strict_param)
    return StructuredOutputs(json=dict(schema))


def left_out(form: StructuredOutputs | None) -> list[str]:
    """The keywords of the form's schema that the output is not held to."""
    return [] if form is None else unenforced(form.json)


def call_form(tools: Sequence[Mapping[str, Any]], name: str | None) -> StructuredOutputs:
    """A call of the tool `name`, or of any; `tools` are in the words of chat templates."""
    functions = [tool["function"] for tool in tools if name in (None, tool["function"]["name"])]
    return json_form(call_schema(functions))


def check_choice(tools: Sequence[str], name: str | None) -> None:
    """Raises HttpError unless the tool `name` can be called, or any."""
    if not tools:
        raise HttpError(400, "tool_choice needs tools.", param="tool_choice")
    if name is not None and name not in tools:
        raise HttpError(400, f"tool_choice names no tool; there are: {', '.join(tools)}.", param="tool_choice")


def check_strict(schema: Mapping[str, Any] | None, param: str) -> None:
    """Raises HttpError for what cannot be enforced, and for what would have it enforced loosely."""
    names = unenforced(schema)
    if GUIDANCE in (schema or ()):
        names.append(GUIDANCE)
    if names:
        raise HttpError(
            400,
            f"A strict schema has {', '.join(names)}, which cannot be enforced; leave that out, or leave strict out.",
            param=param,
        )


def call_schema(functions: Sequence[Mapping[str, Any]], place: str = "#") -> dict[str, Any]:
    """Of a call of one of `functions`, which are in the words of chat templates, at `place` in the whole schema."""
    if len(functions) == 1:
        return _call_schema(functions[0], place)
    return {"anyOf": [_call_schema(each, f"{place}/anyOf/{index}") for index, each in enumerate(functions)]}


def _call_schema(function: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Stands at `place` in the whole schema, and references in the parameters go where these stand then."""
    try:
        arguments = rebased({**ANY_OBJECT, **parameters_of(function)}, f"{place}/properties/arguments")
    except RecursionError as error:
        raise HttpError(400, "The parameters of a tool are nested too deeply.", param="tools") from error
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def parameters_of(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """A function that names no parameters takes none, unless its schema says what else an object may have."""
    given = function.get("parameters") or NOTHING
    return {**given, **NOTHING} if given.get("properties") == {} and given.keys() <= SAYS_NOTHING else given
