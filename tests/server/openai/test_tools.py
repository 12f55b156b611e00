"""Tool calls over HTTP: those that the model may make, and those that are asked for; JSON that is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import anthropic
import openai
import pytest
import torch
from pydantic import BaseModel
from transformers import AddedToken, AutoTokenizer

from pagoda import LLM
from pagoda.llm import EMBEDDED_MODEL
from pagoda.server.asked.strict_calls import strict_form
from pagoda.server.replies.dialects import HARMONY, HERMES, LLAMA3, Dialect
from pagoda.structured.compiler import GrammarCompiler
from server.running import MODEL, Running, running
from server.scripted import scripted_model

MESSAGES = [{"role": "user", "content": "What is the weather in Dover?"}]
SCHEMA = {
    "type": "object",
    "properties": {"place": {"enum": ["Dover", "Deal"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["place", "days"],
    "additionalProperties": False,
}
FUNCTION = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
OTHER = {"type": "function", "function": {"name": "tide", "parameters": {**SCHEMA, "description": "Of the sea."}}}
AS_CALL = '{"name": "weather", "arguments": {"place": "Dover", "days": 3}}'


@pytest.fixture
def client(server: Running):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client:
        yield client


def check(arguments: str) -> None:
    value = json.loads(arguments)
    assert set(value) == {"place", "days"}
    assert value["place"] in ("Dover", "Deal")
    assert value["days"] in range(1, 10)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_is_asked_for_is_made(client: openai.OpenAI, choice: object) -> None:
    asked = {"model": MODEL, "messages": MESSAGES, "tools": [OTHER, FUNCTION], "tool_choice": choice, "seed": 3}
    answer = client.chat.completions.create(**asked).choices[0]
    assert answer.finish_reason == "tool_calls"
    call = answer.message.tool_calls[0]
    assert call.function.name in ("weather", "tide") if choice == "required" else call.function.name == "weather"
    check(call.function.arguments)
    deltas = [
        delta
        for chunk in client.chat.completions.create(**asked, stream=True)
        for choice in chunk.choices
        for delta in choice.delta.tool_calls or []
    ]
    first, *rest = deltas
    assert (first.index, first.function.name, first.function.arguments) == (0, call.function.name, "")
    assert {(delta.index, delta.id, delta.function.name) for delta in rest} == {(0, None, None)}
    assert rest
    assert "".join(delta.function.arguments for delta in rest) == call.function.arguments


def test_calls_in_the_other_apis(client: openai.OpenAI, server: Running) -> None:
    tool = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
    response = client.responses.create(model=MODEL, input="Weather?", tools=[tool], tool_choice="required")
    assert [item.type for item in response.output] == ["function_call"]
    check(response.output[0].arguments)
    events = client.responses.create(model=MODEL, input="Weather?", tools=[tool], tool_choice="required", stream=True)
    kinds = [event.type for event in events]
    assert "response.function_call_arguments.done" in kinds
    assert kinds[-1] == "response.completed"
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as other:
        asked = {
            "model": MODEL,
            "max_tokens": 200,
            "messages": MESSAGES,
            "tools": [{"name": "weather", "input_schema": SCHEMA}],
            "tool_choice": {"type": "tool", "name": "weather"},
        }
        message = other.messages.create(**asked)
        assert message.stop_reason == "tool_use"
        check(json.dumps(message.content[0].input))
        with other.messages.stream(**asked) as stream:
            check(json.dumps(stream.get_final_message().content[0].input))


@pytest.fixture(scope="module")
def calling():
    """A server whose model begins a call, and writes anything then."""
    model = scripted_model("<tool_call>")
    with (
        LLM(model, tokenizer=EMBEDDED_MODEL, kv_cache_memory_bytes=8 << 20, num_threads=1) as llm,
        running(llm) as server,
    ):
        yield server


def said_by(server: Running, body: dict, tool: dict, forces: bool) -> list[tuple[str, str]]:
    """Why each API's answer ends, and all that it says, whole and as a stream."""
    found = []
    function = {"type": "function", "function": {**tool, "parameters": SCHEMA}}
    chat = body | {"tools": [function]} | ({"tool_choice": "required"} if forces else {})
    with openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client:
        choice = client.chat.completions.create(**chat).choices[0]
        found.append((choice.finish_reason, str(choice.message.content or "") + str(choice.message.tool_calls or "")))
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**chat, stream=True)]
        found.append((chunks[-1].finish_reason, "".join(chunk.delta.content or "" for chunk in chunks)))
        asked = {"model": MODEL, "input": "Weather?", "max_output_tokens": body["max_tokens"]}
        asked |= {"tools": [{"type": "function", **tool, "parameters": SCHEMA}]}
        asked |= {"tool_choice": "required"} if forces else {}
        response = client.responses.create(**asked)
        calls = [item for item in response.output if item.type == "function_call"]
        found.append((response.incomplete_details.reason, response.output_text + str(calls or "")))
        *_, last = client.responses.create(**asked, stream=True)
        found.append((last.response.incomplete_details.reason, last.response.output_text))
        assert last.type == "response.incomplete"
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as other:
        asked = (
            body | {"tools": [{**tool, "input_schema": SCHEMA}]} | ({"tool_choice": {"type": "any"}} if forces else {})
        )
        message = other.messages.create(**asked)
        found.append((message.stop_reason, "".join(str(block) for block in message.content)))
        with other.messages.stream(**asked) as stream:
            final = stream.get_final_message()
        found.append((final.stop_reason, "".join(block.text for block in final.content if block.type == "text")))
    return found


ENDS = ["length", "length", "max_output_tokens", "max_output_tokens", "max_tokens", "max_tokens"]


@pytest.mark.parametrize("max_tokens", [1, 4, 8, 12])
def test_a_call_that_is_cut_leaves_nothing_in_the_text(server: Running, calling: Running, max_tokens: int) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": max_tokens}
    tool = {"name": "weather_at_the_sea", "strict": True}
    assert said_by(server, body, tool, forces=True) == [(end, "") for end in ENDS]
    if max_tokens > 2:  # as many as the mark has
        assert said_by(calling, body, tool, forces=False) == [(end, "") for end in ENDS]


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object", "properties": {}}])
def test_a_tool_without_parameters_is_called_with_none(server: Running, parameters: dict | None) -> None:
    function = {"name": "now"} if parameters is None else {"name": "now", "parameters": parameters}
    body = {"model": MODEL, "messages": MESSAGES, "tools": [{"type": "function", "function": function}]}
    answer = server.post("/v1/chat/completions", body | {"tool_choice": "required"}).json()["choices"][0]
    assert answer["message"]["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}


@pytest.mark.parametrize("seed", range(3))
def test_calls_of_strict_tools_fit_their_schemas(calling: Running, seed: int) -> None:
    tool = {"name": "weather", "strict": True}
    body = {"model": MODEL, "messages": MESSAGES, "seed": seed, "max_tokens": 400}
    function = {"type": "function", "function": tool | {"parameters": SCHEMA}}
    answer = calling.post("/v1/chat/completions", body | {"tools": [function]}).json()["choices"][0]
    assert answer["finish_reason"] == "tool_calls", answer
    check(answer["message"]["tool_calls"][0]["function"]["arguments"])
    message = calling.post("/v1/messages", body | {"tools": [tool | {"input_schema": SCHEMA}]}).json()
    assert message["stop_reason"] == "tool_use", message
    check(json.dumps(message["content"][0]["input"]))
    asked = {"model": MODEL, "input": "Weather?", "tools": [{"type": "function", **tool, "parameters": SCHEMA}]}
    response = calling.post("/v1/responses", asked | {"seed": seed, "max_output_tokens": 400}).json()
    assert response["output"][0]["type"] == "function_call", response
    check(response["output"][0]["arguments"])


@pytest.mark.parametrize("change", [{}, {"strict": False}, {"strict": True, "tool_choice": "none"}])
def test_other_tools_leave_the_model_free(calling: Running, change: dict) -> None:
    change = dict(change)
    choice = {"tool_choice": change.pop("tool_choice", "auto")}
    function = {"type": "function", "function": FUNCTION["function"] | change}
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 50, "tools": [function]} | choice
    answer = calling.post("/v1/chat/completions", body).json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["message"]["content"] == "<tool_call>"


def test_a_strict_schema_that_cannot_be_enforced_is_refused(server: Running) -> None:
    function = {"name": "weather", "strict": True, "parameters": {"type": 5}}
    body = {"model": MODEL, "messages": MESSAGES, "tools": [{"type": "function", "function": function}]}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"


@pytest.mark.parametrize("added", [(), ("<tool_call>", "</tool_call>", "<think>")])
@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (f"<think>Fog.</think> See: <tool_call>{AS_CALL}</tool_call>\n<tool_call>\n{AS_CALL}\n</tool_call> done", ""),
        ("a < b <tool", ""),
        ("<tool_call>Fog", "Fog"),
        ('<tool_call>{"name": "rain"', 'rain"'),
        ('<tool_call>{"name": "tide", "arguments": {"free": [1]}}</tool_call>', ""),
        ('<tool_call>{"name": "weather", "arguments": {"place": "Bath"', 'Bath"'),
    ],
)
def test_text_is_free_until_a_call_begins(text: str, rest: str, added: tuple[str, ...]) -> None:
    """Whether the marks are tokens of their own or not."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    tokenizer.add_tokens([AddedToken(each, normalized=False, special=False) for each in added])
    form = strict_form([FUNCTION, OTHER], {"weather"}, HERMES, tokenizer)
    compiler = GrammarCompiler(tokenizer, len(tokenizer), frozenset([tokenizer.eos_token_id]))
    matcher = compiler.compile(form).new()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    for number, token in enumerate(tokens):
        logits = torch.zeros(len(tokenizer))
        matcher.mask(logits)
        if logits[token]:
            assert rest
            assert len(tokenizer.decode(tokens[number:])) <= len(rest)
            return
        matcher.push(token)
    assert not rest
    logits = torch.zeros(len(tokenizer))
    matcher.mask(logits)
    assert logits[tokenizer.eos_token_id] == 0


def test_a_mark_that_is_a_token_cannot_be_spelled_in_others() -> None:
    plain = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False, special=False)])
    form = strict_form([FUNCTION], {"weather"}, HERMES, tokenizer)
    matcher = GrammarCompiler(tokenizer, len(tokenizer), frozenset([tokenizer.eos_token_id])).compile(form).new()
    *begin, last = plain.encode("<tool_call>", add_special_tokens=False)
    for token in begin:
        matcher.push(token)
    logits = torch.zeros(len(tokenizer))
    matcher.mask(logits)
    assert logits[last] != 0
    assert logits[plain.encode("x", add_special_tokens=False)[0]] == 0


@pytest.mark.parametrize("dialect", [LLAMA3, HARMONY, None])
def test_calls_that_no_mark_tells_from_text_are_left_alone(dialect: Dialect | None) -> None:
    assert strict_form([FUNCTION], {"weather"}, dialect, None) is None


class Place(BaseModel):
    """Has references in its schema, one of them to itself."""

    name: Literal["Dover", "Deal"]
    near: Place | None = None


class Trip(BaseModel):
    first: Place
    last: Place


def test_references_in_the_schema_of_a_tool(calling: Running) -> None:
    trip = openai.pydantic_function_tool(Trip)
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 1500, "seed": 1}
    for tools in ([trip], [FUNCTION, trip]):
        choice = {"type": "function", "function": {"name": "Trip"}}
        asked = body | {"tools": tools, "tool_choice": choice}
        answer = calling.post("/v1/chat/completions", asked).json()["choices"][0]
        assert answer["finish_reason"] == "tool_calls", answer
        Trip.model_validate_json(answer["message"]["tool_calls"][0]["function"]["arguments"])
    place = openai.pydantic_function_tool(Place)
    for choice in ("auto", "required"):
        for seed in range(3):
            asked = body | {"tools": [place, trip], "tool_choice": choice, "seed": seed}
            answer = calling.post("/v1/chat/completions", asked).json()["choices"][0]
            assert answer["finish_reason"] == "tool_calls", answer
            call = answer["message"]["tool_calls"][0]["function"]
            {"Trip": Trip, "Place": Place}[call["name"]].model_validate_json(call["arguments"])
    tool = {"name": "Trip", "input_schema": Trip.model_json_schema()}
    message = calling.post("/v1/messages", body | {"tools": [tool], "tool_choice": {"type": "any"}}).json()
    Trip.model_validate(message["content"][0]["input"])


def test_json_of_a_schema(client: openai.OpenAI, server: Running) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, response_format=schema)
    check(answer.choices[0].message.content)
    text = {"format": {"type": "json_schema", "name": "trip", "schema": SCHEMA}}
    check(client.responses.create(model=MODEL, input="A trip?", text=text).output_text)
    body = {
        "model": MODEL,
        "max_tokens": 200,
        "messages": MESSAGES,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    }
    check(server.post("/v1/messages", body).json()["content"][0]["text"])


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}}, None),
        ({"tools": [FUNCTION], "tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
    ],
)
def test_a_form_that_cannot_be_had_is_refused(server: Running, change: dict, param: str | None) -> None:
    answer = server.post("/v1/chat/completions", {"model": MODEL, "messages": MESSAGES, "max_tokens": 4} | change)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == (param or "response_format")


def test_conversations_with_tools_compute_only_what_is_new(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "tools": [FUNCTION, OTHER], "temperature": 0}
    messages: list[dict] = list(MESSAGES)
    first = client.chat.completions.create(messages=messages, tool_choice="required", **asked)
    call = first.choices[0].message.tool_calls[0].model_dump()
    messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    messages.append({"role": "tool", "tool_call_id": call["id"], "content": "Fog."})
    second = client.chat.completions.create(messages=messages, max_tokens=4, **asked)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1
    messages.append({"role": "assistant", "content": second.choices[0].message.content})
    messages.append({"role": "user", "content": "Thank you."})
    third = client.chat.completions.create(messages=messages, max_tokens=4, **asked)
    assert third.usage.prompt_tokens_details.cached_tokens >= second.usage.prompt_tokens - 1


def test_tools_that_the_template_cannot_show_are_refused(llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "plain.jinja"
    file.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    with running(llm, chat_template=file) as server:
        body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 2}
        assert server.post("/v1/chat/completions", body).status_code == 200
        refused = server.post("/v1/chat/completions", body | {"tools": [FUNCTION]})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
