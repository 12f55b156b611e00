"""What one tenant does changes nothing that another sees: neither tokens counted, nor hits, nor text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagoda import LLM
from pagoda.server.ground.options import ServerOptions
from pagoda.server.ground.tenants import Tenants
from server.running import MODEL, Running, running

# 32 pages of 32 tokens: B is sure of half of them, and all that it asks for fits there.
TENANTS = """
[tenants.a]
api_key = "a"
page_quota = 0.3
lease_budget = 0.3
[tenants.b]
api_key = "b"
page_quota = 0.5
lease_budget = 0.2
"""
STORY = "The room was a pleasant one, at the top of the house, overlooking the sea. "
PROMPTS = [STORY * 3 + end for end in ("I looked out", "She sat down", "He was gone")] + ["Once upon a time", STORY]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = tmp_path_factory.mktemp("tenants") / "tenants.toml"
    file.write_text(TENANTS)
    shares = Tenants(ServerOptions(tenants=file)).shares
    with (
        LLM(kv_cache_memory_bytes=4 << 20, num_threads=1, tenants=shares) as llm,
        running(llm, tenants=file) as server,
    ):
        assert llm.cache_stats().groups[0].total == 32
        yield server


def ask(server: Running, tenant: str, body: dict[str, Any]) -> tuple[Any, ...]:
    """What a tenant sees of its request."""
    asked = {"model": MODEL, "max_tokens": 4, "temperature": 0, "ignore_eos": True} | body
    answer = server.post("/v1/messages", asked, headers={"x-api-key": tenant})
    assert answer.status_code == 200, answer.text
    message = answer.json()
    usage = {name: count for name, count in message["usage"].items() if name.endswith("_tokens") or name == "kv"}
    return message["content"], message["stop_reason"], usage


def marked(text: str, ttl: str | None) -> dict[str, Any]:
    control = {} if ttl is None else {"cache_control": {"type": "ephemeral", "ttl": ttl}}
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": text, **control}]}]}


OF_B = st.builds(marked, st.sampled_from(PROMPTS), st.sampled_from([None, "5m"]))
LONG = st.builds(lambda number, words: f"{number} " + "sea house room " * words, st.integers(0, 9), st.integers(1, 110))
OF_A = st.builds(marked, st.one_of(LONG, LONG, st.sampled_from(PROMPTS)), st.sampled_from([None, "5m", "1h"]))
# Before each request of B, some of A: three long ones take all the pages that B is not sure of.
STEPS = st.lists(st.tuples(st.lists(OF_A, max_size=4), OF_B), min_size=3, max_size=6)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=STEPS)
def test_one_tenant_sees_nothing_of_another(server: Running, steps: list[tuple[list[Any], dict[str, Any]]]) -> None:
    server.llm.reset_prefix_cache()
    first, second = uuid4().hex, uuid4().hex  # what is told of misses knows B's own past, so it has none
    alone = [ask(server, "b", {**body, "cache_salt": first}) for _, body in steps]
    server.llm.reset_prefix_cache()
    beside = []
    for others, body in steps:
        for each in others:
            ask(server, "a", each)
        beside.append(ask(server, "b", {**body, "cache_salt": second}))
    assert beside == alone
    server.llm.check_integrity()
