"""What of JSON schemas llguidance enforces, said in its own words, and what is told to be left out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from pagoda.structured.schema import FORMATS, MOST_DEPENDENTS, UNENFORCED, enforceable, lenient, rebased, unenforced

TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
TOKENIZER = LLTokenizer("byte")
# Of each keyword a value that means something.
VALUES: dict[str, Any] = {
    "minContains": 1,
    "maxContains": 1,
    "uniqueItems": True,
    "dependencies": {"a": ["b"]},
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {}},
    "$dynamicRef": "#a",
    "$recursiveRef": "#",
    "unevaluatedItems": False,
    "unevaluatedProperties": False,
}


def matcher(schema: Any) -> LLMatcher:
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults={"whitespace_pattern": " "})
    return LLMatcher(TOKENIZER, grammar, log_level=0)


def allows(schema: Any, value: Any) -> bool:
    text = json.dumps(value).encode()
    found = matcher(enforceable(schema))
    assert not found.is_error(), found.get_error()
    return found.validate_tokens(list(text)) == len(text) and found.consume_tokens(list(text)) and found.is_accepting()


@pytest.mark.parametrize("keyword", sorted(UNENFORCED))
def test_the_named_keywords_are_those_that_llguidance_refuses(keyword: str) -> None:
    schema = {keyword: VALUES.get(keyword, TEXT)}
    assert keyword in matcher(schema).get_error()
    assert not matcher(lenient(schema)).is_error()


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_the_known_formats_are_those_that_llguidance_knows(format: str) -> None:
    schema = {"type": "string", "format": format}
    assert not matcher(schema).is_error()
    assert enforceable(schema) == schema


@pytest.mark.parametrize("format", ["password", "path", "binary", "byte", "regex", "url", "uri-reference", "decimal"])
def test_other_formats_are_annotations(format: str) -> None:
    schema = {"type": "array", "items": {"anyOf": [{"type": "string", "format": format}, {"type": "null"}]}}
    assert allows(schema, ["anything at all", None])
    assert not allows(schema, [1])
    assert unenforced(schema) == []


OBJECT = {"type": "object", "additionalProperties": WHOLE}
LISTED = {**OBJECT, "propertyNames": {"type": "string", "enum": ["a", "b"]}, "required": ["b"]}
KNOWN = {**LISTED, "properties": {"a": TEXT}}
# As pydantic writes a dict whose keys are an Enum's.
NAMES = {"enum": ["a", "b"], "title": "Name", "type": "string"}
REFERRED = {**LISTED, "propertyNames": {"$ref": "#/$defs/Name"}, "$defs": {"Name": NAMES}}
PATTERN = {**OBJECT, "propertyNames": {"pattern": "^x_[a-z]+$"}}
DEPENDENT = {"type": "object", "properties": {"a": WHOLE, "b": WHOLE}, "dependentRequired": {"a": ["b"]}}
SEALED = {"type": "object", "properties": {"a": WHOLE}, "unevaluatedProperties": False}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({**OBJECT, "propertyNames": TEXT}, [{}, {"any": 1}], [{"any": "x"}]),
        ({**OBJECT, "propertyNames": True}, [{"any": 1}], [{"any": "x"}]),
        (LISTED, [{"b": 1}, {"a": 2, "b": 1}], [{}, {"a": 1}, {"b": 1, "c": 1}, {"b": "x"}]),
        (KNOWN, [{"a": "x", "b": 1}], [{"a": 1, "b": 1}]),
        (REFERRED, [{"b": 1}, {"a": 2, "b": 1}], [{}, {"b": 1, "c": 1}]),
        ({"type": "object", "properties": {"a": {**WHOLE, "format": None}}}, [{"a": 1}], [{"a": "x"}]),
        ({**LISTED, "additionalProperties": False, "required": []}, [{}], [{"a": 1}]),
        (PATTERN, [{}, {"x_a": 1, "x_b": 2}], [{"y": 1}, {"x_a": "x"}]),
        (DEPENDENT, [{}, {"b": 1}, {"a": 1, "b": 1}], [{"a": 1}]),
        (SEALED, [{}, {"a": 1}], [{"b": 1}]),
        ({"type": "object", "properties": {"a": {"not": {}}, "b": WHOLE}}, [{}, {"b": 1}], [{"a": 1}]),
        ({"type": "array", "items": WHOLE, "uniqueItems": False}, [[1, 1]], [["x"]]),
        ({"type": "object", "properties": {"not": WHOLE, "if": TEXT}}, [{"not": 1, "if": "x"}], [{"not": "x"}]),
        ({"enum": [{"not": 1}, {"format": "x"}]}, [{"not": 1}, {"format": "x"}], [{}]),
    ],
)
def test_what_can_be_said_otherwise_is_enforced(schema: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    assert unenforced(schema) == []
    for nested, wrap in (
        (schema, lambda value: value),
        ({"type": "array", "items": rebased(schema, "#/items")}, lambda value: [value]),
    ):
        for value in good:
            assert allows(nested, wrap(value)), value
        for value in bad:
            assert not allows(nested, wrap(value)), value


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        ({"not": TEXT}, ["not"]),
        ({"type": "array", "items": {"type": "array", "uniqueItems": True}}, ["uniqueItems"]),
        ({"$defs": {"x": {"if": {"not": {}}, "then": TEXT}}}, ["if", "then"]),
        ({**PATTERN, "properties": {"x_a": WHOLE}}, ["propertyNames"]),
        ({**OBJECT, "propertyNames": {"maxLength": 3}}, ["propertyNames"]),
        ({"dependentRequired": {str(each): ["x"] for each in range(MOST_DEPENDENTS + 1)}}, ["dependentRequired"]),
        ({"anyOf": [{"prefixItems": [{"contains": WHOLE}]}, {"unevaluatedItems": False}]},
         ["contains", "unevaluatedItems"]),
    ],
)  # fmt: skip
def test_what_is_left_is_told_by_name(schema: dict[str, Any], names: list[str]) -> None:
    assert unenforced(schema) == names
    assert "$defs" in schema or names[0] in matcher(enforceable(schema)).get_error()
    assert not matcher(lenient(schema)).is_error()


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        "x",
        [],
        {"properties": [1]},
        {"properties": 3, "propertyNames": {"enum": [1, []]}},
        {"properties": {"a": 1}, "propertyNames": {"enum": [["a"]]}},
        {"propertyNames": {"pattern": []}},
        {"propertyNames": 3, "dependentRequired": [3], "allOf": 3, "format": []},
        {"dependentRequired": {"a": 3}, "allOf": {}},
        {"anyOf": {"a": {}}, "items": 3, "x-guidance": 3},
    ],
)
def test_what_is_no_schema_is_left_to_be_refused(value: Any) -> None:
    enforceable(value)
    unenforced(value)


def test_references_lead_where_they_led() -> None:
    data = {"const": {"$ref": "#/x"}, "enum": [{"$ref": "#/x"}], "default": {"$ref": "#"}}
    schema = {
        "$ref": "#",
        "properties": {"$ref": {"$ref": "#/$defs/a"}, "b": data, "c": {"$ref": "https://x.example#/y"}},
        "$defs": {"a": {"anyOf": [{"$ref": "#/properties/b"}]}},
    }
    assert rebased(schema, "#/here") == {
        "$ref": "#/here",
        "properties": {"$ref": {"$ref": "#/here/$defs/a"}, "b": data, "c": {"$ref": "https://x.example#/y"}},
        "$defs": {"a": {"anyOf": [{"$ref": "#/here/properties/b"}]}},
    }
