"""What a model thinks stands apart from what it says, in each API's own words, whole and as a stream."""

from __future__ import annotations

from pathlib import Path

import anthropic
import openai
import pytest

from pagoda import LLM
from pagoda.llm import EMBEDDED_MODEL
from server.running import MODEL, Running, running
from server.scripted import scripted_model

# The prompt opens the thought.
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}<think>\n{# </think> tools #}"
MESSAGES = [{"role": "user", "content": "The weather?"}]
THOUGHT, SAID = "Is it fog", "No, rain."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    path: Path = tmp_path_factory.mktemp("template") / "template.jinja"
    path.write_text(TEMPLATE)
    model = scripted_model(f"{THOUGHT}</think>{SAID}")
    with (
        LLM(model, tokenizer=EMBEDDED_MODEL, kv_cache_memory_bytes=8 << 20, num_threads=1) as llm,
        running(llm, chat_template=path) as server,
    ):
        yield server


@pytest.fixture
def client(server: Running):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client:
        yield client


def test_chats(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": MESSAGES}
    message = client.chat.completions.create(**asked).choices[0].message
    assert (message.reasoning_content, message.reasoning, message.content) == (THOUGHT, THOUGHT, SAID)
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == THOUGHT
    assert "".join(getattr(delta, "reasoning", "") for delta in deltas) == THOUGHT
    assert "".join(delta.content or "" for delta in deltas) == SAID


def test_messages(server: Running) -> None:
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 100}
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as client:
        thought, text = client.messages.create(**asked).content
        assert (thought.type, thought.thinking, text.type, text.text) == ("thinking", THOUGHT, "text", SAID)
        assert thought.signature
        with client.messages.stream(**asked) as stream:
            kinds = [event.delta.type for event in stream if event.type == "content_block_delta"]
            again = stream.get_final_message().content
    assert [block.model_dump(exclude={"parsed_output"}) for block in again] == [thought.model_dump(), text.model_dump()]
    assert kinds[0] == "thinking_delta"
    assert kinds[kinds.index("signature_delta") + 1 :][0] == "text_delta"


def test_responses(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "input": "The weather?"}
    response = client.responses.create(**asked)
    thought, message = response.output
    assert (thought.type, thought.summary, thought.content[0].text) == ("reasoning", [], THOUGHT)
    assert thought.content[0].type == "reasoning_text"
    assert (message.type, response.output_text) == ("message", SAID)
    events = list(client.responses.create(**asked, stream=True))
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == THOUGHT
    assert [event.text for event in events if event.type == "response.reasoning_text.done"] == [THOUGHT]
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]
    assert events[-1].response.output_text == SAID


def test_a_thought_that_is_cut_is_no_answer(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=2).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("length", "")
    assert THOUGHT.startswith(choice.message.reasoning_content)


def test_json_that_is_asked_for_is_no_thought(client: openai.OpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["fog"]}}}
    message = client.chat.completions.create(model=MODEL, messages=MESSAGES, response_format=schema).choices[0].message
    assert message.content == '"fog"'
