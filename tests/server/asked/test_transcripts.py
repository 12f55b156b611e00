"""Turns that come back keep the tokens they were written in, whatever the tokenizer would make of their text."""

from __future__ import annotations

import pytest

from pagoda.outputs import CompletionOutput
from pagoda.prompts import ReadPrompt
from pagoda.server.asked.transcripts import Transcripts
from pagoda.server.ground.messages import Scope
from server.running import MODEL, Running

PROMPT = "The room was a pleasant one, at the top of the house, overlooking the sea. " * 4
ASKED = {"model": MODEL, "max_tokens": 24, "n": 16, "temperature": 2, "return_token_ids": True}
# What a seed gives depends on the processor.
SEEDS = range(5, 15)
MINE = Scope("me")


@pytest.fixture
def transcripts(llm) -> Transcripts:
    return Transcripts(llm.tokenizer, llm.engine.model.eos_token_ids)


def answer(text: str, token_ids: list[int], stop_reason: str | None = None) -> CompletionOutput:
    return CompletionOutput(0, text, token_ids, None, stop_reason, None, None)


def unusual(server: Running, messages: list[dict], **more: object) -> tuple[dict, int]:
    """An answer that the tokenizer would give fewer tokens, and how many the conversation has with it."""
    for seed in SEEDS:
        whole = server.post("/v1/chat/completions", ASKED | {"messages": messages, "seed": seed} | more).json()
        for choice in whole["choices"]:
            text, ids = choice["message"]["content"], choice["token_ids"]
            usual = server.llm.tokenizer(text, add_special_tokens=False).input_ids
            if len(usual) != len(ids) and "\ufffd" not in text:
                return choice["message"], whole["usage"]["prompt_tokens"] + len(ids)
    raise AssertionError("no sample has unusual tokens")


def test_an_unusual_answer_is_hit_to_its_last_token(server: Running) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    for question in ("And the garden?", "Who lives there?"):
        message, known = unusual(server, messages)
        messages += [{"role": "assistant", "content": message["content"]}, {"role": "user", "content": question}]
        asked = ASKED | {"messages": messages, "n": 1, "max_tokens": 1}
        usage = server.post("/v1/chat/completions", asked).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= known - 1
        other = server.post("/v1/chat/completions", asked | {"cache_salt": "other"}).json()["usage"]
        assert other["prompt_tokens"] != usage["prompt_tokens"]
    messages[2]["content"] = "And the attic?"
    usage = server.post("/v1/chat/completions", asked | {"messages": messages[:3]}).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] - 16


def test_marks_lie_where_they_did(server: Running) -> None:
    part = {"type": "text", "text": PROMPT, "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "user", "content": PROMPT}]
    message, known = unusual(server, messages)
    last = {"role": "user", "content": [{**part, "text": "And the garden?"}]}
    turns = [{"role": "user", "content": [part]}, {"role": "assistant", "content": message["content"]}, last]
    first, second = server.post("/v1/messages", {"model": MODEL, "max_tokens": 1, "messages": turns}).json()["usage"][
        "kv"
    ]["leases"]
    assert first["tokens"] < known < second["tokens"]
    assert first["granted"]
    assert second["granted"]


def test_counts_and_pins_are_of_the_same_tokens(server: Running) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    message, known = unusual(server, messages)
    turns = [*messages, {"role": "assistant", "content": message["content"]}, {"role": "user", "content": "Who?"}]
    usage = server.post("/v1/messages", {"model": MODEL, "max_tokens": 1, "messages": turns}).json()["usage"]
    read = usage["cache_read_input_tokens"]
    assert read >= known - 1
    counted = server.post("/v1/messages/count_tokens", {"model": MODEL, "messages": turns}).json()["input_tokens"]
    assert counted == usage["input_tokens"] + usage["cache_creation_input_tokens"] + read
    pinned = server.post("/v1/kv/pin", {"model": MODEL, "messages": turns, "ttl_seconds": 60}).json()
    assert pinned["kv"]["device"] >= known


def test_a_mark_between_unusual_answers_lies_where_it_did(server: Running) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    message, _ = unusual(server, messages)
    mark = {"type": "ephemeral", "ttl": "1h"}
    question = {"role": "user", "content": [{"type": "text", "text": "And the garden?", "cache_control": mark}]}
    messages += [{"role": "assistant", "content": message["content"]}, question]
    asked = {"model": MODEL, "max_tokens": 1}
    before = server.post("/v1/messages", asked | {"messages": messages}).json()["usage"]["kv"]["leases"][0]
    plain = [*messages[:2], {"role": "user", "content": "And the garden?"}]
    message, _ = unusual(server, plain)
    messages += [{"role": "assistant", "content": message["content"]}, {"role": "user", "content": "Who lives there?"}]
    after = server.post("/v1/messages", asked | {"messages": messages}).json()["usage"]["kv"]["leases"][0]
    assert after["tokens"] == before["tokens"]


def test_what_is_not_just_its_text_is_left_to_the_tokenizer(transcripts: Transcripts, llm) -> None:
    eos = llm.tokenizer.eos_token
    (eos_id,) = llm.tokenizer(eos, add_special_tokens=False).input_ids
    prompt = ReadPrompt("ab", [1, 2])
    for each in (
        answer("c", [3, eos_id, 4]),
        answer("\ufffd", [3]),
        answer("c", [3, 4], stop_reason="d"),
    ):
        transcripts.remember(MINE, prompt, each)
    assert transcripts.recall(MINE, f"abc{eos}") == []
    transcripts.remember(MINE, prompt, answer("c", [3, eos_id]))
    transcripts.remember(MINE, ReadPrompt(f"abc{eos}d", [1, 2, 3, eos_id, 5]), answer("e", [6]))
    assert [each.num_characters for each in transcripts.recall(MINE, f"abc{eos}de")] == [3]
    first, second = transcripts.recall(MINE, f"abc{eos}de{eos}f")
    assert (first.num_characters, list(first.token_ids)) == (3, [1, 2])  # 3 is special
    assert (second.num_characters, list(second.token_ids)) == (len(f"abc{eos}de"), [1, 2, 3, eos_id, 5, 6])
    assert transcripts.recall(Scope("me", "salt"), f"abc{eos}") == []
    assert transcripts.recall(Scope("you"), f"abc{eos}") == []
