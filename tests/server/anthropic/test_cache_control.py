"""Prompt-cache control as clients ask for it: what is marked stays for its time, and the counts say so."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import openai
import pytest

from pagoda import LLM
from server.running import MODEL, Running, running

STORY = "The room was a pleasant one, at the top of the house, overlooking the sea. " * 8
QUESTION = [{"role": "user", "content": "Who lives there?"}]
PAGE_TOKENS = 32
FIVE_MINUTES = {"type": "ephemeral"}
ONE_HOUR = {"type": "ephemeral", "ttl": "1h"}
ASKED = {"model": MODEL, "max_tokens": 4, "messages": QUESTION, "extra_body": {"temperature": 0.0}}


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def small() -> Iterator[tuple[Running, Clock]]:
    """A server with few pages, and the clock of its leases."""
    clock = Clock()
    with LLM(kv_cache_memory_bytes=7 << 20, num_threads=1) as llm:
        llm.engine._cache.leases._clock = clock
        with running(llm) as server:
            yield server, clock


@pytest.fixture
def server(small: tuple[Running, Clock]) -> Iterator[Running]:
    small[0].llm.reset_prefix_cache()
    yield small[0]
    small[0].wait_until_idle()


@pytest.fixture
def clock(small: tuple[Running, Clock]) -> Clock:
    return small[1]


@pytest.fixture
def claude(server: Running):
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture
def gpt(server: Running):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client:
        yield client


def flood(server: Running) -> None:
    """Other prompts, twice as many as there are pages."""
    total = server.llm.cache_stats().groups[0].total
    length = 500  # a prompt that needs all pages would end leases of its own tenant
    for start in range(0, 2 * total * 32, length):
        ids = [1000 + (start // length + index) % 900 for index in range(length)]
        body = {"model": MODEL, "prompt": ids, "max_tokens": 1}
        assert server.post("/v1/completions", body).status_code == 200


def is_kept(num_read: int, num_marked: int) -> bool:
    """Whether all that was marked was read, and no more than the page that its end is in."""
    return num_marked <= num_read < num_marked + PAGE_TOKENS


def system(*marks: dict | None) -> list[dict]:
    """Blocks of the story, each with its mark."""
    return [{"type": "text", "text": f"{i} {STORY}"} | ({"cache_control": m} if m else {}) for i, m in enumerate(marks)]


def test_what_is_marked_survives_a_flood_and_what_is_not_does_not(claude: anthropic.Anthropic, server: Running) -> None:
    first = claude.messages.create(system=system(FIVE_MINUTES, None), **ASKED).usage
    assert first.cache_creation_input_tokens > 100
    assert first.cache_creation.ephemeral_5m_input_tokens == first.cache_creation_input_tokens
    assert (first.cache_creation.ephemeral_1h_input_tokens, first.cache_read_input_tokens) == (0, 0)
    flood(server)
    again = claude.messages.create(system=system(FIVE_MINUTES, None), **ASKED).usage
    assert is_kept(again.cache_read_input_tokens, first.cache_creation_input_tokens)
    assert again.cache_creation_input_tokens == 0


def test_a_lease_ends_with_its_time_and_use_prolongs_it(
    claude: anthropic.Anthropic, server: Running, clock: Clock
) -> None:
    written = claude.messages.create(system=system(FIVE_MINUTES), **ASKED).usage.cache_creation_input_tokens
    for _ in range(2):
        clock.seconds += 200
        flood(server)
        assert claude.messages.create(system=system(FIVE_MINUTES), **ASKED).usage.cache_read_input_tokens >= written
    clock.seconds += 301
    flood(server)
    usage = claude.messages.create(system=system(FIVE_MINUTES), **ASKED).usage
    assert usage.cache_read_input_tokens == 0
    assert usage.cache_creation_input_tokens == written


def test_longer_and_shorter_times_are_told_apart(claude: anthropic.Anthropic, server: Running, clock: Clock) -> None:
    usage = claude.messages.create(system=system(ONE_HOUR, FIVE_MINUTES), **ASKED).usage
    hour, minutes = usage.cache_creation.ephemeral_1h_input_tokens, usage.cache_creation.ephemeral_5m_input_tokens
    assert min(hour, minutes) > 100
    assert usage.cache_creation_input_tokens == hour + minutes
    clock.seconds += 301
    flood(server)
    again = claude.messages.create(system=system(ONE_HOUR, FIVE_MINUTES), **ASKED).usage
    assert is_kept(again.cache_read_input_tokens, hour)
    assert again.cache_creation.ephemeral_5m_input_tokens == hour + minutes - again.cache_read_input_tokens


def test_the_whole_message_can_be_marked_and_put_there_before(claude: anthropic.Anthropic, server: Running) -> None:
    asked = {**ASKED, "system": STORY, "cache_control": ONE_HOUR}
    warm = claude.messages.create(**{**asked, "max_tokens": 0})
    assert (warm.content, warm.stop_reason, warm.usage.output_tokens) == ([], "max_tokens", 0)
    assert warm.usage.cache_creation.ephemeral_1h_input_tokens > 100
    flood(server)
    with claude.messages.stream(**asked) as stream:
        start = next(event for event in stream if event.type == "message_start").message.usage
        final = stream.get_final_message().usage
    counted = warm.usage.input_tokens + warm.usage.cache_creation_input_tokens
    for usage in (start, final):
        assert usage.cache_read_input_tokens >= warm.usage.cache_creation_input_tokens
        assert usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens == counted
    refused = server.post(
        "/v1/messages", {**ASKED["extra_body"], "model": MODEL, "messages": QUESTION, "max_tokens": 0}
    )
    assert refused.status_code == 200
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 0, "stream": True}
    assert server.post("/v1/messages", body).status_code == 400


def test_what_goes_beyond_the_budget_is_served_and_said_not_to_be_kept(server: Running) -> None:
    half = server.llm.engine.max_model_len
    capacity = server.llm.cache_stats().groups[0].total * 32
    size = min(half - 64, capacity // 2 - 64)
    granted = []
    for number in range(3):
        text = server.llm.tokenizer.decode([1000 + (number * 31 + index) % 900 for index in range(size // 2)])
        body = {
            "model": MODEL,
            "max_tokens": 1,
            "messages": [{"role": "user", "content": [{"type": "text", "text": text, "cache_control": ONE_HOUR}]}],
        }
        answer = server.post("/v1/messages", body)
        assert answer.status_code == 200
        usage = answer.json()["usage"]
        granted.append(usage["kv"]["leases"][0]["granted"])
        assert (usage["cache_creation_input_tokens"] > 0) == granted[-1]
    assert granted[0]
    assert not granted[-1]


def test_a_breakpoint_in_the_middle_of_a_page_is_kept_to_the_token(
    claude: anthropic.Anthropic, server: Running
) -> None:
    for number in range(0, 40, 7):
        blocks = [{"type": "text", "text": f"{number} " + STORY[: 300 + 11 * number], "cache_control": FIVE_MINUTES}]
        first = claude.messages.create(system=blocks, **ASKED).usage
        if number == 21:
            flood(server)
        other = {**ASKED, "messages": [{"role": "user", "content": f"{number} is something else."}]}
        again = claude.messages.create(system=blocks, **other).usage
        assert again.cache_read_input_tokens >= first.cache_creation_input_tokens


def test_openai_marks(gpt: openai.OpenAI, server: Running) -> None:
    part = {"type": "text", "text": STORY, "prompt_cache_breakpoint": {"mode": "explicit"}}
    messages = [{"role": "system", "content": [part]}, *QUESTION]
    asked = {"model": MODEL, "messages": messages, "max_tokens": 4, "prompt_cache_options": {"mode": "explicit"}}
    first = gpt.chat.completions.create(**asked).usage
    written = first.prompt_tokens_details.cache_write_tokens
    assert 100 < written < first.prompt_tokens
    flood(server)
    again = gpt.chat.completions.create(**asked).usage
    assert is_kept(again.prompt_tokens_details.cached_tokens, written)
    assert again.prompt_tokens_details.cache_write_tokens == 0
    implicit = gpt.chat.completions.create(**{**asked, "prompt_cache_options": {"mode": "implicit"}}).usage
    assert implicit.prompt_tokens_details.cached_tokens == implicit.prompt_tokens - 1
    flood(server)
    kept = gpt.chat.completions.create(**asked).usage
    assert kept.prompt_tokens_details.cached_tokens == kept.prompt_tokens - 1


def test_a_response_is_put_there_before(gpt: openai.OpenAI, server: Running) -> None:
    asked = {"model": MODEL, "input": STORY, "max_output_tokens": 4}
    warm = gpt.responses.create(**asked, prompt_cache_options={"prewarm": True, "ttl": "12h"})
    assert (warm.output, warm.status, warm.usage.output_tokens) == ([], "completed", 0)
    details = warm.usage.input_tokens_details
    assert details.cache_write_tokens == details.cache_write_tokens_details.ttl_12h_tokens == warm.usage.input_tokens
    flood(server)
    usage = gpt.responses.create(**asked).usage
    assert usage.input_tokens_details.cached_tokens == usage.input_tokens - 1
    answered = {"input": [{"role": "user", "content": STORY}, {"role": "user", "content": "Go on."}]}
    on = gpt.responses.create(**{**asked, "input": "Go on."}, previous_response_id=warm.id).usage
    assert on.input_tokens == gpt.responses.create(**{**asked, **answered}).usage.input_tokens
