"""What one request may ask for, and what is left of it once it has ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pagoda import LLM
from pagoda.errors import HttpError
from pagoda.server.asked.body import MOST_ITEMS
from pagoda.server.ground.errors import invalid_field
from server.running import MODEL, Running, running

HUGE = 10**400
COMPLETION = {"model": MODEL, "prompt": "The sea", "max_tokens": 1}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "The sea"}], "max_tokens": 1}
RESPONSE = {"model": MODEL, "input": "The sea", "max_output_tokens": 1}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", COMPLETION | {"max_tokens": HUGE}),
        ("/v1/completions", COMPLETION | {"min_tokens": HUGE}),
        ("/v1/completions", COMPLETION | {"top_k": HUGE}),
        ("/v1/chat/completions", CHAT | {"max_tokens": HUGE}),
        ("/v1/responses", RESPONSE | {"max_output_tokens": HUGE}),
        ("/v1/messages", CHAT | {"max_tokens": HUGE}),
    ],
)
def test_a_number_beyond_all_bounds_is_refused(server: Running, path: str, body: dict) -> None:
    answer = server.post(path, body)
    assert answer.status_code == 400
    assert "max" in answer.json()["error"]["message"] or "at most" in answer.json()["error"]["message"]


def test_a_request_that_rules_out_every_token_ends_alone(server: Running) -> None:
    """Of two in the same steps."""
    everything = list(range(server.llm.engine.model.vocab_size))
    refused = server.post("/v1/completions", COMPLETION | {"min_tokens": 1, "stop_token_ids": everything})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "min_tokens")
    assert server.post("/v1/completions", COMPLETION).status_code == 200


def test_scored_prompts_are_bounded(server: Running) -> None:
    body = COMPLETION | {"echo": True, "max_tokens": 0, "prompt": [[5] * 2000] * 100}
    refused = server.post("/v1/completions", body | {"logprobs": 20})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")
    assert server.post("/v1/completions", body | {"logprobs": 1000}).json()["error"]["param"] == "logprobs"


def test_nothing_is_kept_of_an_answer_for_its_deadline(server: Running) -> None:
    headers = {"x-request-timeout": "999999999"}
    assert server.post("/v1/completions", COMPLETION, headers=headers).status_code == 200
    assert not server.service._deadlines


def test_a_tenant_s_limit_counts_prompts(llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text('[tenants.a]\napi_key = "one"\nmax_requests = 2\n')
    headers = {"x-api-key": "one"}
    with running(llm, tenants=file) as server:
        assert server.post("/v1/completions", COMPLETION | {"prompt": ["a", "b"]}, headers=headers).status_code == 200
        refused = server.post("/v1/completions", COMPLETION | {"prompt": ["a", "b", "c"]}, headers=headers)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
        refused = server.post("/v1/completions", COMPLETION | {"n": 3}, headers=headers)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
        server.wait_until_idle()


def test_of_many_marks_the_last_count(server: Running) -> None:
    mark = {"mode": "explicit"}
    parts = [{"type": "text", "text": f"Part {n} of a story.", "prompt_cache_breakpoint": mark} for n in range(2000)]
    body = CHAT | {"messages": [{"role": "user", "content": parts[:20]}], "prompt_cache_options": mark}
    leases = server.post("/v1/chat/completions", body).json()["usage"]["kv"]["leases"]
    assert len(leases) == 4
    assert min(each["tokens"] for each in leases) > 16 * 5
    refused = server.post("/v1/chat/completions", body | {"messages": [{"role": "user", "content": parts}]})
    assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_without_marks_explicit_requests_write_nothing(server: Running) -> None:
    body = CHAT | {"prompt_cache_options": {"mode": "explicit"}}
    details = server.post("/v1/chat/completions", body).json()["usage"]["prompt_tokens_details"]
    assert details["cache_write_tokens"] == 0
    usage = server.post("/v1/responses", RESPONSE | {"prompt_cache_options": {"mode": "explicit"}}).json()["usage"]
    assert usage["input_tokens_details"]["cache_write_tokens"] == 0


def test_marks_before_the_least_tokens_are_ignored(llm: LLM) -> None:
    part = {"type": "text", "cache_control": {"type": "ephemeral"}}
    with running(llm, min_cacheable_tokens=50) as server:
        for text, is_kept in (("The sea.", False), ("The sea was calm. " * 20, True)):
            body = CHAT | {"messages": [{"role": "user", "content": [{**part, "text": text}]}]}
            usage = server.post("/v1/messages", body).json()["usage"]
            assert (usage["cache_creation_input_tokens"] > 0) == is_kept
            assert (usage["kv"]["leases"] != []) == is_kept
        server.wait_until_idle()


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": [{}] * 100_000}, "prompt"),
        ("/v1/completions", {"prompt": [[{}] * 1000] * 100}, "prompt"),
        ("/v1/chat/completions", {"messages": [0] * 100_000}, "messages"),
        ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": [0] * 100_000}]}, "messages"),
        ("/v1/responses", {"input": [{"type": "message"}] * 10_000}, "input"),
        ("/v1/completions", {"prompt": "a", "logit_bias": dict.fromkeys(map(str, range(50_000)), "x")}, "logit_bias"),
        ("/v1/completions", {"prompt": "a"} | dict.fromkeys(map(str, range(100_000)), 0), ""),
    ],
)
def test_of_many_errors_few_are_made(server: Running, path: str, body: dict, param: str) -> None:
    counts = []

    def counted(errors: list, body: object) -> HttpError:
        counts.append(len(errors))
        return invalid_field(errors, body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pagoda.server.app.invalid_field", counted)
        answer = server.post(path, {"model": MODEL} | body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error.get("param") or error["message"]).startswith(param)  # Anthropic has no param
    assert counts[0] < 20


def test_more_messages_than_any_context_has_are_refused(server: Running) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": ""}] * (MOST_ITEMS + 1)}
    answer = server.post("/v1/chat/completions", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


def test_stop_strings_are_short(server: Running) -> None:
    body = {"model": MODEL, "prompt": "The", "max_tokens": 2, "stop": ["x" * 257]}
    answer = server.post("/v1/completions", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stop")
    assert server.post("/v1/completions", body | {"stop": ["x" * 256]}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_half_a_surrogate_is_a_salt_like_any_other(server: Running, path: str) -> None:
    asked = {"input": "Hello"} if path == "/v1/responses" else {"messages": [{"role": "user", "content": "Hello"}]}
    limit = {"max_output_tokens": 2} if path == "/v1/responses" else {"max_tokens": 2}
    content = json.dumps({"model": MODEL, "cache_salt": "\ud800"} | asked | limit)
    answer = server.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200


@pytest.mark.parametrize("depth", [900, 5000])
def test_deep_arguments_of_an_earlier_call_are_text(server: Running, depth: int) -> None:
    arguments = '{"a":' * depth + "1" + "}" * depth
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 1}
    assert server.post("/v1/chat/completions", body).status_code in (200, 400)
    item = {"type": "function_call", "name": "f", "call_id": "c", "arguments": arguments}
    body = {"model": MODEL, "input": [{"role": "user", "content": "x"}, item], "max_output_tokens": 1}
    assert server.post("/v1/responses", body).status_code in (200, 400)


def test_a_streamed_prewarm_tells_of_no_item(server: Running) -> None:
    body = RESPONSE | {"stream": True, "prompt_cache_options": {"prewarm": True}}
    del body["max_output_tokens"]
    lines = server.post("/v1/responses", body).text.splitlines()
    kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert kinds == ["response.created", "response.in_progress", "response.completed"]


def test_an_empty_message_has_no_block_streamed_or_not(server: Running) -> None:
    text = server.post("/v1/messages", CHAT | {"seed": 1}).json()["content"][0]["text"]
    body = CHAT | {"seed": 1, "stop_sequences": [text[0]]}
    assert server.post("/v1/messages", body).json()["content"] == []
    assert "content_block_start" not in server.post("/v1/messages", body | {"stream": True}).text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT | {"reasoning_effort": "max", "service_tier": "ultrafast"}),
        ("/v1/responses", RESPONSE | {"reasoning": {"effort": "max", "mode": "standard", "context": "auto"}}),
    ],
)
def test_what_sdks_know_and_nothing_depends_on_is_taken(server: Running, path: str, body: dict) -> None:
    assert server.post(path, body).status_code == 200
