"""A JSON schema in the words that llguidance enforces.

Some keywords say what others say too, and are put so; formats that it does not know are annotations, as the standard
has it. What is left of those that it refuses is told by name. Knows where schemas are within a schema, and takes no
property of the same name for a keyword.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)
# Of all drafts, what llguidance refuses unless it is told to be lenient.
UNENFORCED = frozenset(
    (
        "not",
        "if",
        "then",
        "else",
        "contains",
        "minContains",
        "maxContains",
        "uniqueItems",
        "propertyNames",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "unevaluatedItems",
        "unevaluatedProperties",
        "$dynamicRef",
        "$recursiveRef",
    )
)
# They alone say nothing.
NOTHING = frozenset(("$dynamicAnchor", "$recursiveAnchor"))
ANY_NAME = {"type": "string"}
MOST_DEPENDENTS = 4  # each doubles the kinds of objects
GUIDANCE = "x-guidance"
# Under these keywords are a schema, a list of schemas, schemas by name.
ONE = frozenset(
    (
        "items",
        "additionalItems",
        "additionalProperties",
        "contains",
        "propertyNames",
        "not",
        "if",
        "then",
        "else",
        "unevaluatedItems",
        "unevaluatedProperties",
    )
)
SEVERAL = frozenset(("allOf", "anyOf", "oneOf", "prefixItems", "items"))
NAMED = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"))
# What other schemas have to say of the same value.
APPLIED = ("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "patternProperties")


def enforceable(schema: Any) -> Any:
    """The same schema with as much of it as llguidance enforces."""
    return _enforceable(schema, schema)


def target(reference: str, root: Any) -> Any:
    """What a reference within the schema `root` points at; None if there is nothing."""
    found = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def rebased(schema: Any, place: str) -> Any:
    """A whole schema as it stands at `place` in another one: its references lead where they led."""
    if not isinstance(schema, Mapping):
        return schema
    found = {name: _within(name, value, lambda inner: rebased(inner, place)) for name, value in schema.items()}
    reference = found.get("$ref")
    return {**found, "$ref": place + reference[1:]} if isinstance(reference, str) and reference[:1] == "#" else found


def _enforceable(schema: Any, root: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    found = {
        name: _within(name, value, lambda inner: _enforceable(inner, root))
        for name, value in schema.items()
        if name not in NOTHING
    }
    if found.get("not") in ({}, True):  # as some libraries say "never"
        return False
    if "format" in found and not (isinstance(found["format"], str) and found["format"] in FORMATS):
        del found["format"]
    if found.get("uniqueItems") is False:
        del found["uniqueItems"]
    if found.get("unevaluatedProperties") is False and not any(name in found for name in APPLIED):
        found.setdefault("additionalProperties", found.pop("unevaluatedProperties"))
    found = _with_names(found, root) if "propertyNames" in found else found
    return _with_dependents(found) if "dependentRequired" in found else found


def unenforced(schema: Any) -> list[str]:
    """The keywords in a schema that no output is held to."""
    return sorted(set(_unenforced(enforceable(schema))))


def lenient(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema, of which llguidance leaves out what it cannot enforce, with a warning."""
    given = schema.get(GUIDANCE)
    return {**schema, GUIDANCE: {**(given if isinstance(given, Mapping) else {}), "lenient": True}}


def _within(name: str, value: Any, change: Callable[[Any], Any]) -> Any:
    """The value of a keyword, with every schema right within it changed."""
    if name in NAMED and isinstance(value, Mapping):
        return {key: change(each) for key, each in value.items()}
    if name in SEVERAL and isinstance(value, list):
        return [change(each) for each in value]
    return change(value) if name in ONE else value


def _unenforced(schema: Any) -> Iterator[str]:
    if not isinstance(schema, Mapping):
        return
    inner: list[Any] = []
    for name, value in schema.items():
        if name in UNENFORCED:
            yield name  # and nothing in it counts
        else:
            _within(name, value, inner.append)
    for each in inner:
        yield from _unenforced(each)


def _with_names(schema: dict[str, Any], root: Any) -> dict[str, Any]:
    """The names of properties said by properties, where that says the same."""
    names, rest = schema["propertyNames"], {name: value for name, value in schema.items() if name != "propertyNames"}
    if isinstance(names, Mapping) and isinstance(names.get("$ref"), str):
        named = target(names["$ref"], root)
        names = {**named, **names} if isinstance(named, Mapping) else names
        names = {name: value for name, value in names.items() if name not in ("$ref", "title", "description")}
    if names is True or names in ({}, ANY_NAME):
        return rest
    known, others = rest.get("properties", {}), rest.get("additionalProperties", True)
    if "patternProperties" in rest or not (isinstance(names, Mapping) and isinstance(known, Mapping)):
        return schema
    match {"type": "string", **names}:
        case {"type": "string", "enum": [*listed], **more} if not more and all(each in listed for each in known):
            properties = {name: known.get(name, others) for name in listed if isinstance(name, str)}
            return {**rest, "properties": properties, "additionalProperties": False}
        case {"type": "string", "pattern": str(pattern), **more} if not (more or known):
            return {**rest, "patternProperties": {pattern: others}, "additionalProperties": False}
    return schema


def _with_dependents(schema: dict[str, Any]) -> dict[str, Any]:
    """What a property requires, said by two kinds of objects: those without it, and those with all that it requires."""
    dependents, all_of = schema["dependentRequired"], schema.get("allOf", [])
    if not (isinstance(dependents, Mapping) and isinstance(all_of, list)) or len(dependents) > MOST_DEPENDENTS:
        return schema
    kinds = [
        {"anyOf": [{"properties": {name: False}}, {"required": required}]} for name, required in dependents.items()
    ]
    rest = {name: value for name, value in schema.items() if name != "dependentRequired"}
    return {**rest, "allOf": [*all_of, *kinds]}
