"""Anthropic's messages through the official client, over real HTTP."""

from __future__ import annotations

import anthropic
import pytest

from pagoda import SamplingParams
from pagoda.engine.engine import Engine
from server.running import MODEL, Running

MESSAGES = [{"role": "user", "content": "Where is the harbour?"}]
ASKED = {"model": MODEL, "max_tokens": 16, "extra_body": {"ignore_eos": True, "temperature": 0.0}}
LONG = "The room was a pleasant one, at the top of the house, overlooking the sea. " * 4
TOOL = {
    "name": "weather",
    "description": "The weather of a place.",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}},
}
MARK = {"type": "ephemeral"}


@pytest.fixture
def client(server: Running):
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as client:
        yield client


def test_a_message_is_what_the_engine_answers(client: anthropic.Anthropic, server: Running) -> None:
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    expected = server.llm.chat([{"role": "system", "content": "Be brief."}, *MESSAGES], params)[0]
    server.llm.reset_prefix_cache()
    message = client.messages.create(system="Be brief.", messages=MESSAGES, **ASKED)
    assert [block.text for block in message.content] == [expected.text]
    assert message.stop_reason == "max_tokens"
    assert message.usage.input_tokens == len(expected.prompt_token_ids)
    assert (message.usage.cache_read_input_tokens, message.usage.output_tokens) == (0, 16)
    again = client.messages.create(system="Be brief.", messages=MESSAGES, **ASKED)
    assert again.usage.cache_read_input_tokens == len(expected.prompt_token_ids) - 1
    assert again.usage.input_tokens == 1
    assert again.content == message.content


def test_a_stream_adds_up_to_the_message(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(messages=MESSAGES, **ASKED)
    with client.messages.stream(messages=MESSAGES, **ASKED) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == 16
    assert final.usage.cache_read_input_tokens == whole.usage.input_tokens - 1
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, None),
        ({"system": LONG + "Be long."}, "system_changed"),
        ({"tools": [TOOL]}, "tools_changed"),
        ({"messages": [{"role": "user", "content": "What is that?"}]}, "messages_changed"),
    ],
)
def test_a_miss_is_explained(client: anthropic.Anthropic, server: Running, change: dict, expected: str | None) -> None:
    base = {"messages": MESSAGES, "system": LONG, **ASKED}
    first = client.messages.create(**base, diagnostics={"previous_message_id": None})
    assert first.diagnostics is None
    diagnostics = {"previous_message_id": first.id}
    found = client.messages.create(**(base | change), diagnostics=diagnostics).diagnostics
    if expected is None:
        assert found is None
    else:
        assert found.cache_miss_reason.type == expected
        assert found.cache_miss_reason.cache_missed_input_tokens > 0
    server.llm.reset_prefix_cache()
    with client.messages.stream(**base, diagnostics=diagnostics) as stream:
        assert stream.get_final_message().diagnostics.cache_miss_reason.type == "unavailable"
    diagnostics = {"previous_message_id": "msg_unknown"}
    reason = client.messages.create(**base, diagnostics=diagnostics).diagnostics.cache_miss_reason
    assert reason.type == "previous_message_not_found"


def test_a_stop_sequence_is_named(client: anthropic.Anthropic) -> None:
    text = client.messages.create(messages=MESSAGES, **ASKED).content[0].text
    stopped = client.messages.create(messages=MESSAGES, stop_sequences=[text[6:9]], **ASKED)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", text[6:9])
    assert stopped.content[0].text == text[:6]


def test_an_answer_can_be_begun(client: anthropic.Anthropic) -> None:
    text = client.messages.create(messages=MESSAGES, **ASKED).content[0].text
    start = text[: text.index(" ", 4)]
    message = client.messages.create(messages=[*MESSAGES, {"role": "assistant", "content": start}], **ASKED)
    assert (start + message.content[0].text).startswith(text)


def test_tokens_are_counted_as_they_are_read(client: anthropic.Anthropic) -> None:
    asked = {"model": MODEL, "messages": MESSAGES, "system": LONG, "tools": [TOOL]}
    counted = client.messages.count_tokens(**asked).input_tokens
    usage = client.messages.create(**asked, max_tokens=1).usage
    assert usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens == counted


def test_tools_and_their_results_are_read(client: anthropic.Anthropic, server: Running) -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"place": "Dover"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Fog."}]}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]},
    ]
    message = client.messages.create(messages=messages, tools=[TOOL], **ASKED)
    rendered = [
        *MESSAGES,
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Dover"}}}
            ],
        },
        {"role": "tool", "content": "Fog.", "tool_call_id": "toolu_1"},
        {"role": "user", "content": "And now?"},
    ]
    function = {"name": "weather", "description": TOOL["description"], "parameters": TOOL["input_schema"]}
    text = server.llm.tokenizer.apply_chat_template(
        rendered, tools=[{"type": "function", "function": function}], tokenize=False, add_generation_prompt=True
    )
    assert "<tool_response>Fog.</tool_response>" in text
    assert "The weather of a place." in text
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == len(server.llm.tokenizer(text).input_ids)
    final = client.messages.create(messages=messages, tools=[TOOL], tool_choice={"type": "none"}, **ASKED)
    assert final.usage.cache_read_input_tokens == usage.input_tokens + usage.cache_read_input_tokens - 1


def test_each_turn_computes_only_its_new_tokens(client: anthropic.Anthropic) -> None:
    # What the end of an answer is followed by is not in its text, so it must end there.
    asked = {**ASKED, "extra_body": {"temperature": 0.0}}
    messages: list[dict] = []
    known = 0
    for question in ("Where is the sea?", "And the house?", "Who lives there?"):
        messages.append({"role": "user", "content": question})
        answer = client.messages.create(messages=messages, system=LONG, tools=[TOOL], **asked)
        usage = answer.usage
        assert usage.cache_read_input_tokens >= known - 1
        messages.append({"role": "assistant", "content": [block.model_dump() for block in answer.content]})
        known = usage.input_tokens + usage.cache_read_input_tokens + usage.output_tokens


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "txt": "x"}]}]}, "messages.0.content.0.t"),
        ({"temperature": 1.5}, "temperature"),
        ({"thinking": {"type": "deep"}}, "thinking"),
        ({"stop_sequences": [""]}, "stop"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"colour": "red"}, "colour"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": MARK}] * 5}]},
            "cache_control",
        ),
        (
            {
                "system": [{"type": "text", "text": "x", "cache_control": MARK}],
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "x", "cache_control": {**MARK, "ttl": "1h"}}],
                    }
                ],
            },
            "cache_control",
        ),
    ],
)
def test_a_wrong_field_is_named(strict: Running, change: dict, name: str) -> None:
    before = strict.llm.cache_stats()
    body = {"model": MODEL, "max_tokens": 4, "messages": MESSAGES} | change
    answer = strict.post("/v1/messages", {key: value for key, value in body.items() if value is not None})
    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert name in error["error"]["message"]
    assert error["request_id"] == answer.headers["request-id"]
    assert strict.llm.cache_stats() == before


def test_errors_of_the_client(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as error:
        client.messages.create(model="claude", max_tokens=1, messages=MESSAGES)
    assert error.value.body["error"]["type"] == "not_found_error"


def test_an_engine_that_fails_is_an_error_of_the_server(
    client: anthropic.Anthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Engine) -> None:
        raise MemoryError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", broken)
        with pytest.raises(anthropic.InternalServerError, match="out of luck"):
            client.messages.create(messages=MESSAGES, **ASKED)
    assert client.messages.create(messages=MESSAGES, **ASKED).content


def test_models_in_its_own_words(client: anthropic.Anthropic) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).type == "model"
