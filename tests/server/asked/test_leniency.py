"""What clients send that means nothing here: ignored and named, or refused by a strict server."""

from __future__ import annotations

import json
import logging

import pytest

from pagoda.server.asked.body import Body, Items
from pagoda.server.asked.leniency import HEADER, MOST_NAMES, IgnoredLog, Leniency
from server.running import MODEL, Running

QUESTION = {"role": "user", "content": "Where is the harbour?"}
CHAT = {"model": MODEL, "max_tokens": 2, "messages": [QUESTION]}
RESPONSE = {"model": MODEL, "max_output_tokens": 2, "input": "Where is the harbour?"}
FUNCTION = {"name": "weather", "parameters": {"type": "object"}}
LOOSE = {"type": "object", "not": {"required": ["x"]}}
LONG = "You are the keeper of a lighthouse, and know the sea. " * 30


def call(arguments: object) -> dict:
    return {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def history(**more: object) -> dict:
    return CHAT | {"messages": [QUESTION, {"role": "assistant", "content": "There.", **more}, QUESTION]}


@pytest.mark.parametrize(
    ("path", "body", "ignored"),
    [
        ("/v1/messages", CHAT | {"context_management": {"edits": []}}, "context_management"),
        ("/v1/messages", CHAT | {"metadata": {"user_id": "x", "device": "y"}}, "device"),
        (
            "/v1/messages",
            CHAT | {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools.web_search_20250305",
        ),
        (
            "/v1/messages",
            CHAT | {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64"}}]}]},
            "content.image",
        ),
        ("/v1/messages", CHAT | {"service_tier": "batch"}, "service_tier=batch"),
        ("/v1/chat/completions", CHAT | {"prediction": None}, "prediction"),
        ("/v1/chat/completions", CHAT | {"reasoning_effort": "extreme"}, "reasoning_effort=extreme"),
        ("/v1/chat/completions", CHAT | {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.custom"),
        ("/v1/chat/completions", history(provider_specific_fields=None), "provider_specific_fields"),
        (
            "/v1/chat/completions",
            history(cache_control={"type": "ephemeral"}, id="x", timestamp=5),
            "cache_control, id, timestamp",
        ),
        ("/v1/chat/completions", history(function_call=None, audio=None), None),
        (
            "/v1/chat/completions",
            history(function_call={"name": "f", "arguments": "{}"}, audio={"id": "x"}),
            "audio, function_call",
        ),
        ("/tokenize", {"messages": [QUESTION], "tools": [{"type": "web_search"}]}, "tools.web_search"),
        (
            "/v1/chat/completions",
            history(tool_calls=[call("{}") | {"index": 0, "extra_content": {}}]),
            "index, extra_content",
        ),
        (
            "/v1/chat/completions",
            CHAT | {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}]},
            "cache_control",
        ),
        (
            "/v1/chat/completions",
            CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "content.image_url",
        ),
        ("/v1/chat/completions", CHAT | {"stream": None, "add_generation_prompt": None, "tools": None}, None),
        *(
            ("/v1/responses", RESPONSE | {"tools": [{"type": kind}]}, f"tools.{kind}")
            for kind in ("web_search", "custom", "local_shell", "namespace")
        ),
        ("/v1/responses", RESPONSE | {"client_metadata": {}, "truncation": "auto"}, "client_metadata, truncation=auto"),
        (
            "/v1/responses",
            RESPONSE | {"input": [{"type": "item_reference", "id": "x"}, {"role": "user", "content": "a"}]},
            "input.item_reference",
        ),
        ("/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 1, "temprature": 1}, "temprature"),
        ("/tokenize", {"prompt": "a", "colour": "red"}, "colour"),
    ],
)
def test_what_means_nothing_is_ignored_and_named(
    server: Running, strict: Running, path: str, body: dict, ignored: str | None
) -> None:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get(HEADER) == ignored
    if ignored is not None:
        assert strict.post(path, body).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        CHAT | {"temperature": "hot"},
        CHAT | {"service_tier": 5},
        CHAT | {"messages": [{"role": "robot", "content": "x"}]},
        CHAT | {"messages": [{"role": "user", "content": [{"type": "text", "txt": "x"}]}]},
        CHAT | {"messages": [{"role": "user", "content": [5]}]},
        CHAT | {"tools": [{"function": FUNCTION}]},
        CHAT | {"tools": [{"type": "custom"}], "tool_choice": "required"},
        CHAT | {"stream_options": {"include_usage": True}},
    ],
)
def test_what_is_wrong_stays_wrong(server: Running, body: dict) -> None:
    assert server.post("/v1/chat/completions", body).status_code == 400


def test_streams_are_told_too(server: Running) -> None:
    answer = server.post("/v1/chat/completions", CHAT | {"stream": True, "colour": "red"})
    assert answer.headers[HEADER] == "colour"


def test_what_is_ignored_is_no_part_of_the_prompt(server: Running) -> None:
    tool = {"type": "function", "function": FUNCTION}
    more = {"cache_control": {"type": "ephemeral"}}
    turn = {"role": "assistant", "content": "There.", "tool_calls": [call("{}")]}
    plain = CHAT | {"tools": [tool], "messages": [QUESTION, turn, QUESTION]}
    full = CHAT | {
        "tools": [tool | more],
        "messages": [QUESTION | more, turn | {"id": "x", "reasoning": None}, QUESTION],
    }
    one, other = (server.post("/v1/chat/completions", body).json()["usage"] for body in (plain, full))
    assert other["prompt_tokens_details"]["cached_tokens"] == one["prompt_tokens"] - 1


@pytest.mark.parametrize("arguments", ["", "null", " ", None])
def test_no_arguments_are_an_empty_object(server: Running, arguments: str | None) -> None:
    counts = [
        server.post("/tokenize", {"messages": [QUESTION, {"role": "assistant", "tool_calls": [call(each)]}]}).json()
        for each in ("{}", arguments)
    ]
    assert counts[0]["tokens"] == counts[1]["tokens"]


def test_an_image_leaves_a_word_and_a_document_its_text(server: Running) -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "", "media_type": "image/png"}}
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "The sea."}}
    told = "[image left out: this model reads text only]"
    counts = [
        server.post(
            "/v1/messages/count_tokens", {"model": MODEL, "messages": [{"role": "user", "content": content}]}
        ).json()["input_tokens"]
        for content in ([image, document], [{"type": "text", "text": told}, {"type": "text", "text": "The sea."}])
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("more", ["", "\n\nBe brief."])
def test_what_is_said_of_billing_is_no_part_of_the_prompt(server: Running, more: str) -> None:
    usages = []
    for session in (1, 2):
        billing = {"type": "text", "text": f"x-anthropic-billing-header: a={session};{more}"}
        system = [billing, {"type": "text", "text": LONG}]
        usages.append(server.post("/v1/messages", CHAT | {"system": system}).json()["usage"])
    assert usages[1]["cache_read_input_tokens"] == usages[0]["input_tokens"] - 1
    text = "\n".join(part["text"] for part in system)
    same = server.post("/v1/messages", CHAT | {"system": text}).json()["usage"]
    assert same["cache_read_input_tokens"] == usages[1]["cache_read_input_tokens"]


def test_a_long_prompt_is_refused_in_words_that_clients_know(server: Running) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": "word " * 9000}]}
    error = server.post("/v1/chat/completions", body).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 4096 tokens" in error["message"]
    message = server.post("/v1/messages", body).json()["error"]["message"]
    assert message.startswith("prompt is too long: ")
    assert " tokens > 4096 maximum" in message


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/chat/completions", [{"type": "input_text", "text": "The sea."}]),
        ("/v1/chat/completions", [{"type": "output_text", "text": "The sea.", "annotations": []}]),
        ("/v1/responses", [{"type": "text", "text": "The sea."}]),
        ("/v1/messages", [{"type": "input_text", "text": "The sea."}]),
        ("/v1/messages", [{"type": "search_result", "source": "x", "content": [{"type": "text", "text": "The sea."}]}]),
        ("/v1/messages", [{"type": "document", "source": {"type": "content", "content": "The sea."}}]),
    ],
)
def test_text_by_another_name_is_read(server: Running, path: str, content: list) -> None:
    computed = []
    for each in ("The sea.", content):
        message = {"role": "user", "content": each}
        body = RESPONSE | {"input": [message]} if path == "/v1/responses" else CHAT | {"messages": [message]}
        answer = server.post(path, body | {"cache_salt": str(len(computed))})
        assert HEADER not in answer.headers
        computed.append(answer.json()["usage"]["kv"]["computed"])
    assert computed[0] == computed[1]


def test_what_other_tools_gave_stays_in_the_history(server: Running) -> None:
    def tokens(*items: dict) -> int:
        body = RESPONSE | {"input": [QUESTION, *items, QUESTION], "cache_salt": items[0]["type"]}
        return server.post("/v1/responses", body).json()["usage"]["input_tokens"]

    call = {"type": "function_call", "call_id": "1", "name": "patch", "arguments": '{"input": "a"}'}
    result = {"type": "function_call_output", "call_id": "1", "output": "It is done."}
    other = {"type": "custom_tool_call", "call_id": "1", "name": "patch", "input": "a"}
    assert tokens(other, result | {"type": "custom_tool_call_output"}) == tokens(call, result)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", RESPONSE | {"response_format": {"type": "json_object"}}),
        ("/v1/responses", RESPONSE | {"guided_regex": "a"}),
        ("/v1/messages", CHAT | {"output_format": {"type": "json_schema"}}),
        ("/v1/messages", CHAT | {"structured_outputs": {"regex": "a"}}),
        ("/v1/completions", {"model": MODEL, "prompt": "a", "response_format": {"type": "json_object"}}),
    ],
)
def test_a_form_that_is_not_known_there_is_refused(server: Running, path: str, body: dict) -> None:
    assert server.post(path, body).status_code == 400
    (name,) = body.keys() & {"response_format", "guided_regex", "output_format", "structured_outputs"}
    assert server.post(path, body | {name: None}).status_code == 200


@pytest.mark.parametrize("choice", [None, "forced"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("odd", [{"not": {"required": ["x"]}}, {"x-guidance": {"lenient": True}}])
def test_strict_tools_are_strict_everywhere(server: Running, path: str, choice: str | None, odd: dict) -> None:
    schema = {"type": "object", **odd}
    function = {"name": "weather", "strict": True}
    tool, body, forced = {
        "/v1/chat/completions": ({"type": "function", "function": function | {"parameters": schema}}, CHAT, "required"),
        "/v1/messages": (function | {"input_schema": schema}, CHAT, {"type": "any"}),
        "/v1/responses": ({"type": "function", **function, "parameters": schema}, RESPONSE, "required"),
    }[path]
    answer = server.post(path, body | {"tools": [tool]} | ({} if choice is None else {"tool_choice": forced}))
    assert answer.status_code == 400
    assert f"A strict schema has {next(iter(odd))}" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "system", "content": "BILLING"}, QUESTION]}),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "developer", "content": "BILLING"}, QUESTION]}),
        ("/v1/responses", RESPONSE | {"input": [{"role": "developer", "content": "BILLING"}, QUESTION]}),
        ("/v1/messages", CHAT | {"messages": [{"role": "system", "content": "BILLING"}, QUESTION]}),
    ],
)
def test_what_is_said_of_billing_is_left_out_of_all_instructions(server: Running, path: str, body: dict) -> None:
    told = json.loads(json.dumps(body).replace("BILLING", "  X-Anthropic-Billing-Header: a=1;\\nBe brief."))
    plain = json.loads(json.dumps(body).replace("BILLING", "Be brief."))
    counts = [
        server.post(path, each | {"cache_salt": str(number)}).json()["usage"]["kv"]["computed"]
        for number, each in enumerate((told, plain))
    ]
    assert counts[0] == counts[1]


def test_a_strict_server_refuses_what_it_cannot_enforce(strict: Running) -> None:
    body = CHAT | {"response_format": {"type": "json_object", "schema": LOOSE}}
    answer = strict.post("/v1/chat/completions", body)
    assert answer.status_code == 400
    assert "not" in answer.json()["error"]["message"]


class Inner(Body):
    number: int = 1


class Outer(Body):
    inner: Items[Inner]


def test_without_leniency_nothing_is_ignored() -> None:
    with pytest.raises(ValueError, match="colour"):
        Outer.model_validate({"inner": [{"colour": "red"}]})
    leniency = Leniency()
    read = Outer.model_validate({"inner": [{"colour": "red", "number": None}, {"a\nb": 2}]}, context=leniency)
    assert read == Outer(inner=[Inner(), Inner()])
    assert leniency.names == ("colour", "a\nb")
    assert leniency.header == "colour, a\\nb"


def test_names_are_bounded_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    leniency, log = Leniency(), IgnoredLog()
    Outer.model_validate({"inner": [{f"{number}" * 100: 1} for number in range(100)]}, context=leniency)
    assert len(leniency.names) == MOST_NAMES
    assert len(leniency.header) < 3000
    with caplog.at_level(logging.WARNING):
        log.tell(("colour",))
        log.tell(("colour", "shape"))
    assert [record.args for record in caplog.records] == [("'colour'",), ("'shape'",)]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": LOOSE}}},
        ),
        ("/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 2, "guided_json": LOOSE}),
        ("/v1/messages", CHAT | {"output_config": {"format": {"type": "json_schema", "schema": LOOSE}}}),
        ("/v1/responses", RESPONSE | {"text": {"format": {"type": "json_schema", "name": "x", "schema": LOOSE}}}),
    ],
)
def test_what_of_a_schema_is_not_enforced_is_named(server: Running, path: str, body: dict) -> None:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    assert answer.headers[HEADER] == "not"
