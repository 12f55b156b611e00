"""`/v1/embeddings`: OpenAI's shape, in its own client's hands, beside requests that run."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
import torch

from pagoda import LLM
from pagoda.engine import embedding
from pagoda.server.openai import embeddings
from server.running import MODEL, MOST_SECONDS, Running, pages_in_use, running, wait_until

TEXTS = ["The sea was calm.", "A storm came up in the night, and the ship was lost."]


def embed(server: Running, given: Any, **more: Any) -> np.ndarray:
    answer = server.post("/v1/embeddings", {"model": MODEL, "input": given, **more})
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [each["index"] for each in data] == list(range(len(data)))
    return np.array([each["embedding"] for each in data])


def test_vectors_are_those_of_the_hidden_states(server: Running) -> None:
    network = server.llm.engine.model.network
    tokens = server.llm.reader.read(TEXTS[1]).token_ids
    (vector,) = embed(server, TEXTS[1])
    (last,) = embed(server, [tokens], pooling="last")
    assert vector.shape == (network.config.hidden_size,)
    assert np.linalg.norm([vector, last], axis=1) == pytest.approx(1, abs=1e-6)
    assert abs(vector - last).max() > 1e-3
    assert embed(server, tokens) == pytest.approx(vector[None])


def test_texts_and_tokens_in_lists_are_as_each_by_itself(server: Running) -> None:
    tokens = [server.llm.reader.read(text).token_ids for text in TEXTS]
    alone = np.concatenate([embed(server, text) for text in TEXTS])
    assert embed(server, TEXTS) == pytest.approx(alone)
    assert embed(server, tokens) == pytest.approx(alone)
    assert abs(alone[0] - alone[1]).max() > 1e-3


@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_the_client_of_openai_reads_them(server: Running, encoding: str) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="any", timeout=MOST_SECONDS)
    answer = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format=encoding)
    first = answer.data[0].embedding
    found = np.frombuffer(base64.b64decode(first), "<f4") if isinstance(first, str) else np.array(first)
    assert found == pytest.approx(embed(server, TEXTS)[0], abs=1e-6)
    num_tokens = sum(len(server.llm.reader.read(text).token_ids) for text in TEXTS)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (num_tokens, num_tokens)


def test_the_cache_is_left_alone(server: Running) -> None:
    before = server.llm.cache_stats()
    embed(server, TEXTS)
    assert server.llm.cache_stats() == before


def test_requests_go_on_and_write_what_they_would(server: Running) -> None:
    body = {"model": MODEL, "prompt": "The sea was", "max_tokens": 300, "temperature": 0, "ignore_eos": True}
    alone = server.post("/v1/completions", body).json()["choices"]
    text = TEXTS[1] * 40
    with ThreadPoolExecutor(2) as threads:
        running_one = threads.submit(server.post, "/v1/completions", body)
        wait_until(lambda: pages_in_use(server.llm) or running_one.done())
        beside = embed(server, [text] * 4)
        assert running_one.result().json()["choices"] == alone
    assert beside == pytest.approx(np.repeat(embed(server, text), 4, axis=0), abs=1e-6)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [10**9]}, "input"),
        ({"input": 3}, "input"),
        ({"input": "x " * 100_000}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "dimensions": 8}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "pooling": "max"}, "pooling"),
    ],
)
def test_what_cannot_be_is_refused_by_name(server: Running, more: dict[str, Any], param: str) -> None:
    answer = server.post("/v1/embeddings", {"model": MODEL, **more})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)


def test_a_text_without_room_is_refused(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "MOST_NBYTES", 1 << 20)
    answer = server.post("/v1/embeddings", {"model": MODEL, "input": TEXTS[1] * 100})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
    assert "embeddings are of at most" in answer.json()["error"]["message"]


def test_numbers_that_are_none_are_an_error(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding.Embedding, "advance", lambda *_: torch.full((4,), torch.nan))
    answer = server.post("/v1/embeddings", {"model": MODEL, "input": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_error")


def test_whoever_waits_is_told_of_the_time_and_not_of_having_gone(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service, "seconds_left", lambda _: 0.001)
    answer = server.post("/v1/embeddings", {"model": MODEL, "input": [[5] * 4000] * 4})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_a_deadline_ends_it(llm: LLM) -> None:
    with running(llm) as server:
        headers = {"x-request-timeout": "0.05"}
        answer = server.post("/v1/embeddings", {"model": MODEL, "input": [TEXTS[1] * 50] * 400}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert server.post("/v1/embeddings", {"model": MODEL, "input": "a"}).status_code == 200


def test_calls_do_not_gather_without_end(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MOST_WAITING", 1)
    long = [TEXTS[1] * 50] * 8
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: server.post("/v1/embeddings", {"model": MODEL, "input": long}), range(4)))
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
