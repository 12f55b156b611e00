"""Why served requests missed, asked of a running server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pagoda import LLM
from pagoda.cli import main
from server.running import MODEL, TENANTS, Running, running

RULES = "You are the keeper of a lighthouse. Answer in one sentence, and never of the war. " * 3
MILL = "Grind rye on Mondays and spelt on Thursdays; weigh every sack twice before it goes. " * 3  # of one test alone
ORCHARD = "Bees of the north field swarm in May; count each hive at noon, and write nothing down. " * 3  # likewise
SECRET = "The password of the harbour is swordfish."
STORY = "The room was a pleasant one, at the top of the house, overlooking the sea. " * 4
FLOOD = "A storm came up in number {} and nobody went out to the ships in the bay. "


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def asked(server: Running, *messages: dict[str, Any], key: str = "", **more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": list(messages), "max_tokens": 4, "temperature": 0, **more}
    response = server.post("/v1/chat/completions", body, headers={"x-api-key": key})
    assert response.status_code == 200, response.text
    return response.json() | {"x-request-id": response.headers["x-request-id"]}


def explained(server: Running, request_id: str, key: str = "", **query: Any) -> dict[str, Any]:
    params = {"request_id": request_id, **query}
    response = server.get("/v1/kv/explain", params=params, headers={"x-api-key": key})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture(scope="module")
def small():
    """A server whose cache holds no more than a few prompts; leases run on a clock of the test's."""
    with LLM(kv_cache_memory_bytes=2 << 20, num_threads=1, max_model_len=512) as llm, running(llm) as server:
        yield server


def flood(server: Running) -> None:
    for number in range(8):
        server.post("/v1/completions", {"model": MODEL, "prompt": FLOOD.format(number) * 8, "max_tokens": 1})


def test_an_evicted_an_expired_and_a_reset_prefix_are_told_apart(small: Running) -> None:
    ask = {"model": MODEL, "prompt": STORY, "max_tokens": 1}
    small.post("/v1/completions", ask)
    flood(small)
    evicted = explained(small, small.post("/v1/completions", ask).json()["id"])
    assert (evicted["cause"], evicted["cache_report"]["policy"]) == ("evicted", "lru")
    assert evicted["missed_tokens"] == evicted["prompt_tokens"] - 1
    assert evicted["cache_report"]["gone_for"].startswith("cmpl-")

    pin = {"model": MODEL, "prompt": STORY, "ttl_seconds": 0.3}
    assert small.post("/v1/kv/pin", pin).json()["granted"]
    while small.get("/v1/kv/status").json()["leases"]:
        pass
    flood(small)
    expired = explained(small, small.post("/v1/completions", ask).json()["id"])
    assert expired["cause"] == "ttl_expired"

    assert small.post("/reset_prefix_cache").json()["pages"] > 0
    reset = explained(small, small.post("/v1/completions", ask).json()["id"])
    assert (reset["cause"], reset["cache_report"]["gone_for"]) == ("reset", None)
    assert len({evicted["words"], expired["words"], reset["words"]}) == 3


def test_what_was_changed_is_found_in_the_closest_request(server: Running) -> None:
    first = asked(server, system(f"{MILL}It is 10:05:01."), user("Which flour is left?"))
    second = asked(server, system(f"{MILL}It is 10:05:09."), user("Which flour is left?"))
    found = explained(server, second["id"])
    assert (found["cause"], found["place"]["section"], found["place"]["message"]) == ("timestamp", "system", 0)
    assert found["vendor"] == {"openai": "input_changed", "anthropic": "system_changed"}
    assert found["closest_request_id"] == first["id"] + "-0"
    assert found["reused_tokens"] == second["usage"]["kv"]["device"] == found["place"]["token"]
    assert 0 < found["missed_tokens"] < found["computed_tokens"]
    assert explained(server, first["id"])["cause"] == "never_seen"


def test_an_answer_that_came_back_changed_is_a_message(server: Running) -> None:
    messages = [system(RULES), user("Where is the harbour?")]
    answer = asked(server, *messages)["choices"][0]["message"]["content"]
    kept = asked(server, *messages, {"role": "assistant", "content": answer}, user("And the ships?"))
    assert explained(server, kept["id"])["cause"] == "continued"
    lost = asked(server, *messages, {"role": "assistant", "content": "In the bay."}, user("And the ships?"))
    found = explained(server, lost["id"])
    assert (found["cause"], found["place"]["message"], found["place"]["role"]) == ("message_edited", 2, "assistant")


def test_tools_are_compared_as_the_prompt_has_them(server: Running) -> None:
    tools = [
        {"type": "function", "function": {"name": name, "description": f"Looks up {name}.", "parameters": {}}}
        for name in ("tides", "weather", "ships")
    ]
    asked(server, system(RULES), user("When is high tide?"), tools=tools)
    turned = asked(server, system(RULES), user("When is high tide?"), tools=tools[::-1])
    found = explained(server, turned["id"])
    assert (found["cause"], found["place"]["section"]) == ("tools_reordered", "tools")
    more = asked(
        server, system(RULES), user("When is high tide?"), tools=[*tools[::-1], {**tools[0], "function": {"name": "a"}}]
    )
    assert explained(server, more["id"])["cause"] == "tool_added"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": STORY, "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": [user(STORY)], "max_tokens": 1}),
        ("/v1/responses", {"input": STORY, "max_output_tokens": 1}),
        ("/v1/messages", {"messages": [user(STORY)], "max_tokens": 1}),
    ],
)
def test_every_id_that_a_client_has_is_known(server: Running, path: str, body: dict[str, Any]) -> None:
    response = server.post(path, {"model": MODEL, **body})
    name = next(name for name in ("x-request-id", "request-id") if name in response.headers)
    call_id = response.json()["id"]
    for request_id in (call_id, f"{call_id}-0", response.headers[name]):
        assert explained(server, request_id)["request_id"] == f"{call_id}-0"
    named = server.post(path, {"model": MODEL, **body}, headers={"x-request-id": "my-own-id"})
    found = explained(server, "my-own-id")
    assert (found["request_id"], found["cause"]) == (named.json()["id"] + "-0", "none")


def test_no_text_is_told_unless_it_is_asked_for(server: Running) -> None:
    asked(server, system(RULES), user(f"Where? {SECRET}"))
    second = asked(server, system(RULES), user(f"When? {SECRET}"))
    quiet = explained(server, second["id"])
    assert "swordfish" not in json.dumps(quiet)
    assert quiet["context"] is None
    loud = explained(server, second["id"], include_text="true")
    assert "re? The password" in loud["context"]["earlier"]
    assert loud["context"]["later"].startswith("n? The password")


def test_unknown_requests_are_refused_with_what_to_do(server: Running) -> None:
    response = server.get("/v1/kv/explain", params={"request_id": "chatcmpl-nobody"})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "request_not_found", "request_id")
    assert "--miss-memory-bytes" in error["message"]
    assert server.get("/v1/kv/explain").status_code == 400
    assert server.get("/v1/kv/explain", params={"request_id": "a", "price_input": -1}).status_code == 400


def test_without_memory_the_counts_are_there_and_the_cause_is_unknown() -> None:
    with LLM(kv_cache_memory_bytes=8 << 20, num_threads=1, miss_memory_bytes=0) as llm, running(llm) as server:
        answer = asked(server, system(RULES), user("Where is the harbour?"))
        assert answer["usage"]["kv"]["cause"] == "unknown"
        assert answer["usage"]["kv"]["computed"] == answer["usage"]["prompt_tokens"]
        response = server.get("/v1/kv/explain", params={"request_id": answer["id"]})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "miss_memory_off")
        assert server.service.late_calls.find(None, answer["id"]) is None
        memory = server.get("/v1/kv/status").json()["miss_memory"]
        assert memory == {"bytes": 0, "limit": 0}


def test_its_size_is_shown(server: Running) -> None:
    asked(server, system(RULES), user("Where is the harbour?"))
    memory = server.get("/v1/kv/status").json()["miss_memory"]
    assert 0 < memory["bytes"] <= memory["limit"] == 16 << 20


def test_tenants_hear_nothing_of_each_other(llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(TENANTS)
    with running(llm, tenants=file) as server:
        server.llm.reset_prefix_cache()
        messages = [system(ORCHARD), user(SECRET)]
        theirs = asked(server, *messages, key="a")
        mine = asked(server, *messages, key="b")
        found = explained(server, mine["id"], key="b", include_text="true")
        assert (found["cause"], found["missed_tokens"], found["closest_request_id"]) == ("never_seen", 0, None)
        assert theirs["id"] not in json.dumps(found)
        for request_id in (theirs["id"], theirs["x-request-id"], theirs["id"] + "-0"):
            refused = server.get("/v1/kv/explain", params={"request_id": request_id}, headers={"x-api-key": "b"})
            assert refused.status_code == 404
        seen = explained(server, mine["id"], key="operator")
        assert (seen["cause"], seen["closest_request_id"]) == ("other_tenant", theirs["id"] + "-0")
        assert explained(server, theirs["x-request-id"], key="operator")["request_id"] == theirs["id"] + "-0"


def test_salts_are_told_of_to_admins_alone(llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(TENANTS)
    with running(llm, tenants=file) as server:
        server.llm.reset_prefix_cache()
        asked(server, system(STORY), key="a", cache_salt="pepper")
        salted = asked(server, system(STORY), key="a", cache_salt="sugar")
        assert explained(server, salted["id"], key="a")["cause"] == "never_seen"
        seen = explained(server, salted["id"], key="operator")
        assert (seen["cause"], seen["missed_tokens"]) == ("salt_changed", seen["prompt_tokens"] - 1)


def test_whom_a_page_went_for_is_told_of_ones_own_requests_alone(tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(TENANTS)
    with (
        LLM(kv_cache_memory_bytes=2 << 20, num_threads=1, max_model_len=512) as llm,
        running(llm, tenants=file) as server,
    ):
        ask = {"model": MODEL, "prompt": STORY, "max_tokens": 1}
        server.post("/v1/completions", ask, headers={"x-api-key": "a"})
        for number in range(8):
            body = {**ask, "prompt": FLOOD.format(number) * 8}
            server.post("/v1/completions", body, headers={"x-api-key": "b"})
        again = server.post("/v1/completions", ask, headers={"x-api-key": "a"}).json()
        found = explained(server, again["id"], key="a")
        assert found["cause"] == "evicted"
        assert [found["cache_report"][name] for name in ("gone_for", "gone_at", "policy")] == [None] * 3
        seen = explained(server, again["id"], key="operator")["cache_report"]
        assert seen["gone_for"].startswith("cmpl-")
        assert (seen["gone_at"] > 0, seen["policy"]) == (True, "lru")
        server.post("/reset_prefix_cache", headers={"x-api-key": "operator"})
        again = server.post("/v1/completions", ask, headers={"x-api-key": "a"}).json()
        found = explained(server, again["id"], key="a")
        assert (found["cause"], found["cache_report"]["gone_at"]) == ("reset", None)


def test_unrelated_conversations_share_a_template_and_nothing_else(server: Running) -> None:
    server.llm.reset_prefix_cache()
    asked(server, system("A pirate loves rum, parrots and gold. " * 5), user("Sing!"))
    second = asked(server, system("Translate medical documents from French into Welsh. " * 5), user("Bonjour"))
    found = explained(server, second["id"])
    assert (found["cause"], found["missed_tokens"], found["closest_request_id"]) == ("never_seen", 0, None)
    assert found["cache_report"]["cause"] == "never_seen"


def test_a_prompt_beside_the_same_one_with_more_waits_for_it(server: Running) -> None:
    server.llm.reset_prefix_cache()
    body = {"model": MODEL, "prompt": [f"Beside. {STORY}", f"Beside. {STORY} z"], "max_tokens": 4}
    call_id = server.post("/v1/completions", body).json()["id"]
    assert explained(server, f"{call_id}-1")["cause"] == "concurrent_write_pending"


def test_a_time_behind_what_was_evicted_is_told_of_where_it_costs_more(small: Running) -> None:
    small.llm.reset_prefix_cache()
    ask, head = {"model": MODEL, "max_tokens": 1}, f"Of the mill: {MILL}"
    small.post("/v1/completions", {**ask, "prompt": f"{head} It is 10:05:01. {STORY * 2}"})
    flood(small)
    late = small.post("/v1/completions", {**ask, "prompt": f"{head} It is 10:05:09. {STORY * 2}"}).json()
    found = explained(small, late["id"])
    assert (found["cause"], found["missed_tokens"]) == ("timestamp", found["computed_tokens"] - 1)
    assert "The whole prompt misses" not in found["sentence"]


def test_a_message_right_behind_the_tools_has_its_name(server: Running) -> None:
    tools = [{"type": "function", "function": {"name": "tides", "description": "Looks up tides.", "parameters": {}}}]
    asked(server, system(RULES), user("Hello you"), tools=tools)
    second = asked(server, system(RULES), user("Bye now"), tools=tools)
    found = explained(server, second["id"])
    assert (found["cause"], found["place"]["section"], found["place"]["message"]) == ("message_edited", "message", 1)
    assert "message 1 (user)" in found["sentence"]


def test_the_command_asks_a_server(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    asked(server, system(f"{RULES}It is 11:15:01."), user("Where is the harbour?"))
    second = asked(server, system(f"{RULES}It is 11:15:09."), user("Where is the harbour?"))
    ask = ["explain", "--url", server.url, "--request-id"]
    assert main([*ask, second["id"], "--price-input", "2.5", "--price-cached", "0.5"]) == 0
    report = capsys.readouterr().out
    assert "timestamp" in report
    assert "due to what was missed" in report
    assert main([*ask, second["id"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["place"]["section"] == "system"
    assert main([*ask, "nobody"]) == 1
    assert "No request 'nobody' is remembered" in capsys.readouterr().err
    assert main(["explain", "--url", server.url]) == 2
    assert main(["explain", "--url", "http://127.0.0.1:1", "--request-id", "a"]) == 1
    assert main(["explain", "--url", "file:///etc/passwd", "--request-id", "a"]) == 2
