"""Arguments that are written as bare text become what the schema of the tool says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pagoda.server.replies.tools import GivenTools

TEXT, NUMBER, REFERENCE = {"type": "string"}, {"type": "number"}, {"$ref": "#/$defs/Days"}
NULLABLE = {"anyOf": [{"type": "string"}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        (TEXT, "5", "5"),
        (TEXT, '{"a": 1}\n', '{"a": 1}\n'),
        ({"enum": ["5", "6"]}, "5", "5"),
        ({"const": 5}, "5", 5),
        (NUMBER, "5", 5),
        (NUMBER, "5.5", 5.5),
        (NUMBER, "five", "five"),
        (NUMBER, "NaN", "NaN"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "array"}, '["a\nb"]', ["a\nb"]),
        ({"type": "array"}, "[" * 100_000, "[" * 100_000),
        ({"type": ["object", "null"]}, "None", None),
        (NULLABLE, "null", None),
        (NULLABLE, "5", "5"),
        (REFERENCE, "5", 5),
        ({"$ref": "#/$defs/Loop"}, "5", 5),
        ({"$ref": "#/nowhere"}, "well", "well"),
        ({}, '{"a": [1]}', {"a": [1]}),
        (None, "well", "well"),
        (True, "5", 5),
    ],
)
def test_values_are_of_the_type_that_the_schema_names(schema: Any, text: str, value: Any) -> None:
    definitions = {"Days": {"type": "integer"}, "Loop": {"$ref": "#/$defs/Loop"}}
    properties = {} if schema is None else {"a": schema}
    function = {"name": "f", "parameters": {"properties": properties, "$defs": definitions}}
    found = json.loads(GivenTools([{"type": "function", "function": function}]).value("f", "a", text))
    assert found == value
    assert type(found) is type(value)


def test_of_a_tool_that_was_not_given_nothing_is_known() -> None:
    assert GivenTools().value("f", "a", "5") == "5"
    assert GivenTools().names == frozenset()
