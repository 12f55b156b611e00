"""The API of the cache itself."""

from __future__ import annotations

import json
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from pagoda import LLM
from pagoda.cache.holdings.allocator import ShownState
from server.running import MODEL, MOST_SECONDS, Running, running

STORY = "The room was a pleasant one, at the top of the house, overlooking the sea. " * 4
PHASES = ("queue", "match", "promotion", "prefill", "decode", "sampling", "detokenise", "structured")
SHORT = {"model": MODEL, "prompt": STORY, "max_tokens": 2}


def test_status_says_what_the_cache_holds(server: Running) -> None:
    server.post("/v1/completions", SHORT)
    status = server.get("/v1/kv/status").json()
    group, counts = status["groups"][0], server.llm.cache_stats().groups[0]
    assert {name: group[name] for name in ("total", "free", "open", "in_use", "idle", "leased")} == {
        "total": counts.total,
        "free": counts.free,
        "open": 0,
        "in_use": 0,
        "idle": counts.idle,
        "leased": 0,
    }
    assert group["total"] * group["page_nbytes"] == status["memory"]["pages"]
    assert (status["requests"], status["leases"]) == ([], [])


def test_the_tree_shows_what_prompts_share(server: Running) -> None:
    for end in ("", "", " I looked out and saw the ships." * 4, " She sat down and read a book." * 4):
        server.post("/v1/completions", SHORT | {"prompt": STORY + end})
    tree = server.get("/v1/kv/tree").json()
    branch = tree["roots"][0]["branches"][0]
    assert branch["text"].startswith("The room was a pleasant one")
    assert branch["hits"] == 3
    assert len(branch["children"]) >= 2
    assert all(child["start"] == branch["tokens"] for child in branch["children"])
    assert len({child["id"] for child in branch["children"]}) == len(branch["children"])

    def pages(branches: list[dict]) -> int:
        return sum(each["pages"] + pages(each["children"]) for each in branches)

    assert pages(tree["roots"][0]["branches"]) == server.llm.cache_stats().groups[0].idle
    bounded = server.get("/v1/kv/tree?limit=1").json()["roots"][0]["branches"]
    assert (len(bounded), bounded[0]["children"], bounded[0]["hidden"]) == (1, [], len(branch["children"]))
    assert server.get("/v1/kv/tree?limit=0").json()["error"]["param"] == "limit"


def test_a_branch_keeps_its_id_where_prompts_part_later(server: Running) -> None:
    def first() -> dict:
        return server.get("/v1/kv/tree").json()["roots"][0]["branches"][0]

    server.post("/v1/completions", SHORT)
    before = first()
    for end in (" I looked out and saw the ships." * 4, " She sat down and read a book." * 4):
        server.post("/v1/completions", SHORT | {"prompt": STORY + end})
    after = first()
    assert before["children"] == []
    assert after["children"] != []
    assert after["id"] == before["id"]


def test_a_pin_computes_and_keeps(server: Running) -> None:
    pinned = server.post("/v1/kv/pin", {"model": MODEL, "prompt": STORY, "ttl_seconds": 60}).json()
    assert pinned["granted"]
    assert pinned["new_bytes"] > 0
    lease = server.get("/v1/kv/status").json()["leases"][0]
    assert 0 < lease["expires_in_seconds"] <= 60
    assert lease["tokens"] == pinned["tokens"]
    assert STORY.startswith(lease["text"])
    assert len(lease["text"]) > 40
    usage = server.post("/v1/completions", SHORT).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == pinned["tokens"] - 1
    messages = [{"role": "user", "content": STORY}]
    assert server.post("/v1/kv/pin", {"model": MODEL, "messages": messages, "ttl_seconds": 60}).json()["granted"]
    assert server.post("/v1/kv/pin", {"model": MODEL, "ttl_seconds": 60}).json()["error"]["param"] == "prompt"
    wrong = server.post("/v1/kv/pin", {"model": MODEL, "prompt": "x", "ttl_seconds": 0})
    assert wrong.json()["error"]["param"] == "ttl_seconds"


@contextmanager
def feed(server: Running, **headers: str) -> Iterator[Iterator[dict]]:
    """The events as they come."""
    url = server.url + "/v1/kv/events"
    with httpx2.stream("GET", url, timeout=MOST_SECONDS, headers=headers) as stream:
        yield (json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: "))


def test_events_are_a_state_and_its_changes(server: Running) -> None:
    deadline = time.monotonic() + MOST_SECONDS
    with feed(server) as events:
        first = next(events)
        assert first["type"] == "state"
        states = bytearray(b64decode(first["pages"][0]))
        assert Counter(states) == {ShownState.FREE: first["groups"][0]["total"]}
        server.post("/v1/completions", SHORT)
        server.wait_until_idle()
        idle = server.llm.cache_stats().groups[0].idle
        assert idle > 0
        recent: list[dict] = []
        while not recent or Counter(states)[ShownState.IDLE] != idle:
            assert time.monotonic() < deadline, Counter(states)
            change = next(events)
            assert change["type"] == "change"
            for page, state in change["changed_pages"][0]:
                states[page] = state
            recent += change["recent"]
    assert len(recent) == 1
    ended = recent[0]
    assert (ended["output_tokens"], ended["finish_reason"], ended["preemptions"]) == (2, "length", 0)
    assert sum(ended["spent"]["wall"].values()) == pytest.approx(ended["seconds"], rel=1e-9)
    assert set(ended["spent"]["work"]) == set(PHASES)
    assert min(ended["spent"]["work"][phase] for phase in ("prefill", "decode", "sampling", "detokenise")) > 0
    assert ended["spent"]["verdict"][0].startswith("The first token took ")


def test_tenants_see_their_own(llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text('[tenants.a]\napi_key = "a"\n[tenants.b]\napi_key = "b"\n[tenants.c]\napi_key="c"\nis_admin = true')
    with running(llm, tenants=file) as server:
        server.llm.reset_prefix_cache()
        server.post("/v1/completions", SHORT, headers={"x-api-key": "a"})

        def roots(key: str) -> list[str]:
            tree = server.get("/v1/kv/tree", headers={"x-api-key": key}).json()
            return [root["tenant"] for root in tree["roots"]]

        assert (roots("a"), roots("b"), roots("c")) == (["a"], [], ["a"])

        def recent(key: str) -> int:
            with feed(server, **{"x-api-key": key}) as events:
                return len(next(events)["recent"])

        assert (recent("a"), recent("b"), recent("c")) == (1, 0, 1)
        assert server.get("/v1/kv/tree").status_code == 401
