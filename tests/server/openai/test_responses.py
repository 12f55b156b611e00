"""OpenAI's responses through the official client, over real HTTP."""

from __future__ import annotations

import openai
import pytest

from pagoda import SamplingParams
from server.running import MODEL, Running

QUESTION = "Where is the harbour?"
LONG = "The room was a pleasant one, at the top of the house, overlooking the sea. " * 4
ASKED = {"model": MODEL, "temperature": 0, "max_output_tokens": 16, "extra_body": {"ignore_eos": True}}
ENDING = {"model": MODEL, "temperature": 0, "max_output_tokens": 16}
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}


@pytest.fixture
def client(server: Running):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client:
        yield client


def test_a_response_is_what_the_engine_answers(client: openai.OpenAI, server: Running) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    expected = server.llm.chat(messages, SamplingParams(temperature=0, max_tokens=16, ignore_eos=True))[0]
    server.llm.reset_prefix_cache()
    response = client.responses.create(instructions="Be brief.", input=QUESTION, **ASKED)
    assert response.output_text == expected.text
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.usage.input_tokens == len(expected.prompt_token_ids)
    assert (response.usage.output_tokens, response.usage.input_tokens_details.cached_tokens) == (16, 0)
    items = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    same = client.responses.create(input=items, **ASKED)
    assert same.output_text == expected.text
    assert same.usage.input_tokens_details.cached_tokens == response.usage.input_tokens - 1


def test_a_stream_adds_up_to_the_response(client: openai.OpenAI) -> None:
    whole = client.responses.create(input=QUESTION, **ASKED)
    events = list(client.responses.create(input=QUESTION, stream=True, **ASKED))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * deltas,
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    assert "".join(event.delta for event in events if event.type.endswith("text.delta")) == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage.output_tokens == 16
    assert whole.output[0].status == events[-1].response.output[0].status == "incomplete"


def test_responses_are_gone_on_from(client: openai.OpenAI) -> None:
    first = client.responses.create(input=LONG, instructions="Be brief.", **ENDING)
    second = client.responses.create(input=QUESTION, instructions="Be brief.", previous_response_id=first.id, **ENDING)
    known = first.usage.input_tokens + first.usage.output_tokens
    assert second.usage.input_tokens_details.cached_tokens >= known - 1
    items = [
        {"role": "user", "content": LONG},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": QUESTION},
    ]
    whole = client.responses.create(input=items, instructions="Be brief.", **ENDING)
    assert whole.output_text == second.output_text
    assert whole.usage.input_tokens == second.usage.input_tokens


def test_responses_are_stored_and_forgotten(client: openai.OpenAI) -> None:
    response = client.responses.create(input=QUESTION, **ASKED)
    assert client.responses.retrieve(response.id).output_text == response.output_text
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    unstored = client.responses.create(input=QUESTION, store=False, **ASKED)
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(input=QUESTION, previous_response_id=unstored.id, **ASKED)
    assert error.value.param == "previous_response_id"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "cache_hit"),
        ({"input": "B" + LONG}, "input_changed"),
        ({"instructions": "Be long."}, "input_changed"),
        ({"tools": [TOOL]}, "tools_changed"),
        ({"prompt_cache_key": "b", "input": "B" + LONG}, "prompt_cache_key_changed"),
    ],
)
def test_a_miss_is_explained(client: openai.OpenAI, change: dict, expected: str) -> None:
    base = {"input": LONG, "instructions": "Be brief.", "prompt_cache_key": "a", **ASKED}
    first = client.responses.create(**base)
    assert first.prompt_cache_diagnostics is None
    options = {"comparison_response_id": first.id}
    found = client.responses.create(**(base | change), prompt_cache_options=options).prompt_cache_diagnostics
    if expected == "cache_hit":
        assert found.type == "cache_hit"
    else:
        assert (found.type, found.reason) == ("cache_miss", expected)
        assert found.cache_missed_tokens > 0


def test_a_miss_of_what_was_evicted_is_not_blamed_on_the_client(client: openai.OpenAI, server: Running) -> None:
    first = client.responses.create(input=LONG, **ASKED)
    server.llm.reset_prefix_cache()
    options = {"comparison_response_id": first.id}
    assert client.responses.create(input=LONG, prompt_cache_options=options, **ASKED).prompt_cache_diagnostics.type == (
        "unavailable"
    )
    options = {"comparison_response_id": "resp_unknown"}
    found = client.responses.create(input=LONG, prompt_cache_options=options, **ASKED).prompt_cache_diagnostics
    assert found.type == "comparison_response_not_found"


def test_a_prompt_that_was_cut_at_the_front_is_compacted(client: openai.OpenAI) -> None:
    turns = [{"role": role, "content": f"{number} {LONG}"} for number, role in enumerate(["user", "assistant"] * 2)]
    first = client.responses.create(input=turns, instructions="Be brief.", **ASKED)
    options = {"comparison_response_id": first.id}
    cut = client.responses.create(input=turns[2:], instructions="Be brief.", prompt_cache_options=options, **ASKED)
    assert cut.prompt_cache_diagnostics.reason == "context_compacted"


def test_calls_and_their_results_are_read(client: openai.OpenAI, server: Running) -> None:
    items = [
        {"role": "user", "content": QUESTION},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"place": "Dover"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "Fog."},
    ]
    response = client.responses.create(input=items, tools=[TOOL], **ASKED)
    call = {"name": "weather", "arguments": {"place": "Dover"}}
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "type": "function", "function": call}]},
        {"role": "tool", "content": "Fog.", "tool_call_id": "call_1"},
    ]
    function = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    text = server.llm.tokenizer.apply_chat_template(
        messages, tools=[function], tokenize=False, add_generation_prompt=True
    )
    assert response.usage.input_tokens == len(server.llm.tokenizer(text).input_ids)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": "image", "url": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_wrong_field_is_named(strict: Running, change: dict, param: str) -> None:
    answer = strict.post("/v1/responses", {"model": MODEL, "input": "x"} | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
