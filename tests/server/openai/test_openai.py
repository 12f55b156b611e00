"""OpenAI's completions and chat completions through the official client, over real HTTP."""

from __future__ import annotations

import json
import math
import socket

import openai
import pytest

from pagoda import SamplingParams
from server.running import MODEL, MOST_SECONDS, Running, pages_in_use, unhurried, wait_until

PROMPT = "The room was a pleasant one, at the top of the house, overlooking the sea. " * 4
GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
ASKED = {"model": MODEL, "temperature": 0, "max_tokens": 16, "extra_body": {"ignore_eos": True}}
MESSAGES = [{"role": "user", "content": "Where is the harbour?"}]


@pytest.fixture
def client(server: Running):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI, server: Running) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).max_model_len == server.llm.engine.max_model_len


def test_a_completion_is_what_the_engine_generates(client: openai.OpenAI, server: Running) -> None:
    expected = server.llm.generate(PROMPT, GREEDY)[0]
    server.llm.reset_prefix_cache()
    completion = client.completions.create(prompt=PROMPT, **ASKED)
    assert completion.choices[0].text == expected.text
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert completion.usage.completion_tokens == 16
    assert completion.usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_adds_up_to_the_completion(client: openai.OpenAI, n: int) -> None:
    asked = {**ASKED, "prompt": [PROMPT, "Once upon a time"], "n": n, "temperature": 0.8, "seed": 5}
    whole = client.completions.create(**asked)
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    usage = None
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason is not None:
                assert choice.index not in reasons
                reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert usage.completion_tokens == 2 * n * 16


def test_token_ids_stop_strings_penalties_and_bias(client: openai.OpenAI, server: Running) -> None:
    ids = server.llm.reader.read(PROMPT).token_ids
    whole = client.completions.create(prompt=PROMPT, **ASKED).choices[0].text
    assert client.completions.create(prompt=ids, **ASKED).choices[0].text == whole
    stopped = client.completions.create(prompt=PROMPT, stop=[whole[5:8]], **ASKED).choices[0]
    assert (stopped.text, stopped.finish_reason) == (whole[:5], "stop")
    biased = client.completions.create(prompt=PROMPT, logit_bias={"300": 100}, **ASKED)
    assert biased.choices[0].text == server.llm.tokenizer.decode([300] * 16)
    asked = {**ASKED, "max_tokens": 48}
    plain = client.completions.create(prompt=PROMPT, **asked)
    penalised = client.completions.create(prompt=PROMPT, frequency_penalty=2.0, presence_penalty=2.0, **asked)
    params = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True, frequency_penalty=2.0, presence_penalty=2.0)
    assert penalised.choices[0].text == server.llm.generate(PROMPT, params)[0].text != plain.choices[0].text


def test_log_probabilities_of_a_completion(client: openai.OpenAI) -> None:
    asked = {**ASKED, "prompt": PROMPT, "logprobs": 2}
    choice = client.completions.create(**asked).choices[0]
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    assert [max(top.values()) for top in logprobs.top_logprobs] == logprobs.token_logprobs
    for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
        assert choice.text[offset:].startswith(token)
    chunks = [chunk.choices[0].logprobs for chunk in client.completions.create(**asked, stream=True)]
    assert [token for each in chunks if each for token in each.tokens] == logprobs.tokens
    assert [value for each in chunks if each for value in each.token_logprobs] == logprobs.token_logprobs


def test_offsets_of_characters_that_several_tokens_make(client: openai.OpenAI) -> None:
    text = "a \U0001f642 b \u6f22\u5b57 c"
    asked = {**ASKED, "prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1}
    logprobs = client.completions.create(**asked).choices[0].logprobs
    assert len(logprobs.tokens) > len(text.split())
    for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
        if not token.startswith("bytes:"):
            assert text[offset:].startswith(token)


def test_token_ids_are_returned_if_wanted(client: openai.OpenAI, server: Running) -> None:
    body = {"ignore_eos": True, "return_token_ids": True}
    choice = client.completions.create(prompt=PROMPT, **{**ASKED, "extra_body": body}).choices[0]
    assert server.llm.tokenizer.decode(choice.token_ids) == choice.text
    assert choice.prompt_token_ids == server.llm.reader.read(PROMPT).token_ids
    asked = {**ASKED, "messages": MESSAGES, "extra_body": body}
    whole = client.chat.completions.create(**asked).choices[0]
    chunks = client.chat.completions.create(stream=True, **asked)
    streamed = [token for chunk in chunks for each in chunk.choices for token in getattr(each, "token_ids", [])]
    assert streamed == whole.token_ids
    assert len(streamed) == 16


def test_echo_puts_the_prompt_first(client: openai.OpenAI) -> None:
    text = client.completions.create(prompt=PROMPT, **ASKED).choices[0].text
    assert client.completions.create(prompt=PROMPT, echo=True, **ASKED).choices[0].text == PROMPT + text
    chunks = client.completions.create(prompt=PROMPT, echo=True, stream=True, **ASKED)
    assert "".join(chunk.choices[0].text for chunk in chunks) == PROMPT + text


def test_the_prompt_is_scored_as_evaluations_want_it(client: openai.OpenAI, server: Running) -> None:
    ids = server.llm.reader.read(PROMPT).token_ids
    scored = server.llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1))[0]
    expected = [each and each.logprob for each in scored.prompt_logprobs]
    for prompt in (ids, PROMPT):
        asked = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1, "model": MODEL, "temperature": 0}
        choice = client.completions.create(**asked).choices[0]
        assert choice.text.startswith(PROMPT)
        logprobs = choice.logprobs
        assert logprobs.token_logprobs[:-1] == expected
        assert len(logprobs.tokens) == len(logprobs.top_logprobs) == len(logprobs.text_offset) == len(ids) + 1
        assert "".join(logprobs.tokens) == choice.text
        assert logprobs.token_logprobs[-1] == max(logprobs.top_logprobs[-1].values())
        streamed = [chunk.choices[0].logprobs for chunk in client.completions.create(**asked, stream=True)]
        assert [value for each in streamed if each for value in each.token_logprobs] == logprobs.token_logprobs


def test_chat_is_what_the_engine_answers(client: openai.OpenAI, server: Running) -> None:
    expected = server.llm.chat(MESSAGES, GREEDY)[0].text
    answer = client.chat.completions.create(messages=MESSAGES, **ASKED)
    assert (answer.choices[0].message.role, answer.choices[0].message.content) == ("assistant", expected)
    chunks = list(client.chat.completions.create(messages=MESSAGES, stream=True, n=2, **ASKED))
    assert chunks[0].choices[0].delta.role == "assistant"
    for index in (0, 1):
        deltas = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in deltas) == expected
        assert [choice.finish_reason for choice in deltas][-1] == "length"


def test_chat_log_probabilities(client: openai.OpenAI) -> None:
    body = {"ignore_eos": True, "skip_special_tokens": False}
    asked = {**ASKED, "messages": MESSAGES, "logprobs": True, "top_logprobs": 3, "extra_body": body}
    answer = client.chat.completions.create(**asked).choices[0]
    content = answer.logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == answer.message.content
    assert all(len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob for token in content)
    assert all(-math.inf < token.logprob <= 0 for token in content)
    streamed = [
        token
        for chunk in client.chat.completions.create(**asked, stream=True)
        for choice in chunk.choices
        for token in (choice.logprobs.content if choice.logprobs else [])
    ]
    assert [token.logprob for token in streamed] == [token.logprob for token in content]


def test_each_turn_computes_only_its_new_tokens(client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": PROMPT}]
    known = 0
    for question in ("Where is the sea?", "And the house?", "Who lives there?"):
        messages.append({"role": "user", "content": question})
        answer = client.chat.completions.create(messages=messages, **ASKED)
        usage = answer.usage
        # The last token generated was never put through the model, nor what ends a turn.
        assert usage.prompt_tokens_details.cached_tokens >= known - 1
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        known = usage.prompt_tokens + usage.completion_tokens
    messages[3]["content"] = "And the garden?"
    edited = client.chat.completions.create(messages=messages[:4], **ASKED)
    first = client.chat.completions.create(messages=messages[:3], **ASKED).usage
    assert edited.usage.prompt_tokens_details.cached_tokens >= first.prompt_tokens


def test_a_client_that_goes_away_frees_its_pages(client: openai.OpenAI, server: Running) -> None:
    with unhurried(server.llm):
        stream = client.completions.create(prompt=PROMPT, **{**ASKED, "max_tokens": 3000}, stream=True)
        next(iter(stream))
        assert pages_in_use(server.llm)
        stream.close()
        server.wait_until_idle()


def test_nobody_waits_for_a_whole_answer_and_its_pages_are_free(server: Running) -> None:
    """Written to a socket, which is closed once the request is under way."""
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"model": MODEL, "prompt": PROMPT, "max_tokens": 3000, "ignore_eos": True})
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    with unhurried(server.llm):
        with socket.create_connection((host, int(port)), timeout=MOST_SECONDS) as connection:
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
            wait_until(lambda: pages_in_use(server.llm))
        server.wait_until_idle()


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("completions", {"prompt": 5}, "prompt"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": ""}, "prompt"),
        ("completions", {"prompt": [99999999]}, "prompt"),
        ("completions", {"prompt": "word " * 9000}, "prompt"),
        ("completions", {"prompt": "word " * 900000}, "prompt"),
        ("completions", {"temprature": 1}, "temprature"),
        ("completions", {"temperature": "hot"}, "temperature"),
        ("completions", {"temperature": 3}, "temperature"),
        ("completions", {"logit_bias": {"x": 1}}, "logit_bias"),
        ("completions", {"logit_bias": {"99999999": 1}}, "logit_bias"),
        ("completions", {"stop": ["x"] * 100}, "stop"),
        ("completions", {"stop": [""]}, "stop"),
        ("completions", {"min_tokens": 20}, "min_tokens"),
        ("completions", {"n": 0}, "n"),
        ("completions", {"best_of": 7}, "best_of"),
        ("completions", {"suffix": "x"}, "suffix"),
        ("completions", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("chat/completions", {}, "messages"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ("chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0",
        ),
        ("chat/completions", {"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {"messages": MESSAGES, "tool_choice": "required"}, "tool_choice"),
        ("chat/completions", {"messages": MESSAGES, "continue_final_message": True}, "continue_final_message"),
    ],
)
def test_a_wrong_field_is_named(strict: Running, path: str, change: dict, param: str | None) -> None:
    before = strict.llm.cache_stats()
    base = {"model": MODEL, "max_tokens": 4} | ({"prompt": "x"} if path == "completions" else {})
    answer = strict.post(f"/v1/{path}", base | change)
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]
    assert strict.llm.cache_stats() == before


@pytest.mark.parametrize("content", [b"{", b"[]", b"nonsense", b"", b'{"model": "\xff"}', b"[" * 100000])
def test_what_is_no_json_is_refused(server: Running, content: bytes) -> None:
    answer = server.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert server.get("/health").status_code == 200


def test_errors_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.completions.create(prompt="x", model="gpt-9")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=MODEL, messages=[{"role": "robot", "content": "x"}])
    assert error.value.param == "messages.0.role"


def test_tokenize_and_back(server: Running) -> None:
    ids = server.post("/tokenize", {"prompt": PROMPT}).json()
    assert ids["tokens"] == server.llm.reader.read(PROMPT).token_ids
    assert ids["count"] == len(ids["tokens"])
    assert server.post("/detokenize", {"tokens": ids["tokens"]}).json() == {"prompt": PROMPT}
    chat = server.post("/tokenize", {"messages": MESSAGES}).json()
    assert chat["tokens"] == server.llm.chat_prompt(MESSAGES)
    assert server.get("/tokenizer_info").json()["eos_token"] == "<|endoftext|>"
    assert server.post("/detokenize", {"tokens": [-1]}).status_code == 400
    assert server.post("/tokenize", {}).status_code == 400


def test_the_document_names_every_route(server: Running) -> None:
    paths = json.loads(server.get("/openapi.json").text)["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/tokenize", "/metrics"} <= set(paths)
