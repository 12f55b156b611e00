"""The form that an output must have: JSON of a schema, or a call of one of the tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pagoda.sampling_params import StructuredOutputs

ANY_OBJECT = {"type": "object"}


def json_form(schema: Mapping[str, Any] | None) -> StructuredOutputs:
    """JSON of a schema, or any object."""
    return StructuredOutputs(json_object=True) if schema is None else StructuredOutputs(json=dict(schema))


def call_form(tools: Sequence[Mapping[str, Any]], name: str | None) -> StructuredOutputs:
    """A call of the tool `name`, or of any; `tools` are in the words of chat templates."""
    functions = [tool["function"] for tool in tools if name in (None, tool["function"]["name"])]
    schemas = [_call_schema(function) for function in functions]
    return StructuredOutputs(json=schemas[0] if len(schemas) == 1 else {"anyOf": schemas})


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {**ANY_OBJECT, **(function.get("parameters") or {})}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
