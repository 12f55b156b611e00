"""Forms of outputs that cannot be had, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pagoda.server.asked.forms import call_form, json_form, left_out
from pagoda.structured.source import MAX_SOURCE_LENGTH
from server.running import MODEL, Running

LARGE = {"type": "object", "description": "x" * MAX_SOURCE_LENGTH}
HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"name": "f", "schema": LARGE}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            "/v1/chat/completions",
            {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": SCHEMA}},
            "response_format",
        ),
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_schema", **SCHEMA}}}, "text"),
    ],
)
def test_what_takes_long_to_compile_is_refused(server: Running, path: str, body: dict[str, Any], param: str) -> None:
    answer = server.post(path, {"model": MODEL} | body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "StructuredOutputError", param)
    assert f"of at most {MAX_SOURCE_LENGTH}" in error["message"]


CHAT = {"model": MODEL, "messages": HELLO, "max_tokens": 60, "temperature": 1, "seed": 1}
COLOURS = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"],
           "additionalProperties": False}  # fmt: skip
UNHELD = {**COLOURS, "not": {"required": ["x"]}, "properties": {"colour": {"enum": ["red"], "format": "password"}}}


def written(server: Running, path: str, body: dict[str, Any]) -> str:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


GUIDED: list[dict[str, Any]] = [
    {"structured_outputs": {"json": COLOURS}},
    {"structured_outputs": {"json": json.dumps(COLOURS)}},
    {"guided_json": COLOURS},
    {"guided_json": json.dumps(COLOURS)},
    {"guided_json": None, "structured_outputs": {"json": COLOURS, "regex": None, "json_object": False}},
    {"structured_outputs": {"json": UNHELD}},
    {"structured_outputs": {"choice": ['{"colour": "red"}', '{"colour":"blue"}']}},
    {"guided_choice": ['{"colour": "red"}']},
    {"structured_outputs": {"regex": r'\{"colour": "(red|blue)"\}'}},
    {"guided_regex": r'\{"colour": "(red|blue)"\}'},
    {"structured_outputs": {"grammar": 'start: "{\\"colour\\": \\"red\\"}"'}},
    {"guided_grammar": 'start: "{\\"colour\\": \\"red\\"}"'},
]
FORMATS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_object", "schema": COLOURS}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": UNHELD}}},
]


@pytest.mark.parametrize("asked", GUIDED + FORMATS)
def test_an_answer_has_the_form_that_is_asked_for(server: Running, asked: dict[str, Any]) -> None:
    found = json.loads(written(server, "/v1/chat/completions", {**CHAT, **asked}))
    assert found in ({"colour": "red"}, {"colour": "blue"})


@pytest.mark.parametrize("asked", GUIDED)
def test_a_completion_has_the_form_that_is_asked_for(server: Running, asked: dict[str, Any]) -> None:
    body = {"model": MODEL, "prompt": "The sea", "max_tokens": 60, "temperature": 0, **asked}
    assert json.loads(written(server, "/v1/completions", body)) in ({"colour": "red"}, {"colour": "blue"})


def test_any_object_is_a_form_of_a_completion(server: Running) -> None:
    body = {"model": MODEL, "prompt": ["The sea", "A ship"], "n": 2, "max_tokens": 8}
    answer = server.post("/v1/completions", {**body, "structured_outputs": {"json_object": True}}).json()
    assert len(answer["choices"]) == 4
    assert all(choice["text"].startswith("{") for choice in answer["choices"])


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"structured_outputs": {"json": COLOURS, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs"),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"guided_json": "3"}, "guided_json"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_grammar": ""}, "guided_grammar"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex"),
        ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "guided_regex"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_form_that_cannot_be_had_is_refused(server: Running, path: str, asked: dict[str, Any], param: str) -> None:
    given = {"messages": HELLO} if "chat" in path else {"prompt": "x"}
    answer = server.post(path, {"model": MODEL, **given, **asked})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, ("response_format", "guided_regex")),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            ("response_format", "structured_outputs"),
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required",
             "guided_regex": "a"},
            ("guided_regex", "tool_choice"),
        ),
    ],
)  # fmt: skip
def test_two_forms_contradict(server: Running, asked: dict[str, Any], names: tuple[str, ...]) -> None:
    answer = server.post("/v1/chat/completions", {**CHAT, **asked})
    assert answer.status_code == 400
    assert all(name in answer.json()["error"]["message"] for name in names)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            "/v1/chat/completions",
            {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {
                "name": "c", "schema": UNHELD, "strict": True}}},
            "response_format",
        ),
        (
            "/v1/responses",
            {"input": "x", "text": {"format": {"type": "json_schema", "name": "c", "schema": UNHELD, "strict": True}}},
            "text",
        ),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "tool_choice": "required", "tools": [
                {"type": "function", "function": {"name": "f", "parameters": UNHELD, "strict": True}}]},
            "tools",
        ),
    ],
)  # fmt: skip
def test_a_strict_schema_is_enforced_or_refused_by_name(
    server: Running, path: str, body: dict[str, Any], param: str
) -> None:
    answer = server.post(path, {"model": MODEL, **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert " not" in error["message"]
    assert "password" not in error["message"]  # an annotation


def test_what_is_not_enforced_is_told_once(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    schema = {**COLOURS, "not": {"required": ["y"]}}
    for _ in range(3):
        written(server, "/v1/chat/completions", {**CHAT, "guided_json": schema})
    assert [each for each in caplog.messages if "Unimplemented" in each] == ['json: Unimplemented keys: ["not"].']


def test_what_is_left_out_of_a_form_can_be_told() -> None:
    tools = [{"type": "function", "function": {"name": name, "parameters": UNHELD}} for name in ("f", "g")]
    assert left_out(json_form(UNHELD)) == left_out(call_form(tools, None)) == left_out(call_form(tools, "g")) == ["not"]
    assert left_out(json_form(COLOURS)) == left_out(json_form(None)) == left_out(None) == []


def test_a_strict_tool_is_none_of_the_others(server: Running) -> None:
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": COLOURS, "strict": True}},
        {"type": "function", "function": {"name": "g", "parameters": UNHELD}},
    ]
    answer = server.post("/v1/chat/completions", {**CHAT, "tools": tools, "tool_choice": "required"})
    assert answer.status_code == 200, answer.text
