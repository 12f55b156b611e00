"""Sessions over HTTP: saved by name, resumed after a restart, each tenant's for itself and within bounds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pagoda import LLM, CompletionOutput, FinishReason
from pagoda.cache.session_file import SUFFIX
from pagoda.chat.options import ChatOptions
from pagoda.prompts import ReadPrompt
from pagoda.server.ground.messages import Scope
from pagoda.server.own import session_folder
from server.running import MODEL, MOST_SECONDS, TENANTS, Running, running

STORY = "The room was a pleasant one, at the top of the house, overlooking the sea. " * 4
CHAT = [{"role": "user", "content": "Where is the harbour?"}, {"role": "assistant", "content": "By the sea."}]
SESSIONS = "/v1/kv/sessions"


@contextmanager
def serving(
    folder: Path, tenants: Path | None = None, llm: dict[str, Any] | None = None, **options: Any
) -> Iterator[Running]:
    """A server that has just started."""
    with (
        LLM(kv_cache_memory_bytes=16 << 20, num_threads=1, **(llm or {})) as model,
        running(model, session_dir=folder, tenants=tenants, drain_timeout_seconds=0, **options) as server,
    ):
        yield server


def cached(server: Running, path: str, body: dict[str, Any], **more: Any) -> int:
    usage = server.post(path, {"model": MODEL, "max_tokens": 1, **body}, **more).json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def key(name: str) -> dict[str, Any]:
    return {"headers": {"authorization": f"Bearer {name}"}}


def delete(server: Running, path: str, **more: Any) -> httpx2.Response:
    return httpx2.delete(server.url + path, timeout=MOST_SECONDS, **more)


def test_a_conversation_resumes_after_a_restart_to_the_token(tmp_path: Path) -> None:
    body = {"model": MODEL, "name": "harbour", "title": "Of ships", "messages": CHAT}
    with serving(tmp_path) as first:
        saved = first.post(SESSIONS, body).json()
        assert (saved["name"], saved["tokens"]) == ("harbour", saved["held_tokens"])
        [listed] = first.get(SESSIONS).json()["data"]
        assert (listed["name"], listed["title"], listed["bytes"]) == ("harbour", "Of ships", saved["bytes"])
    question = [*CHAT, {"role": "user", "content": "And the lighthouse?"}]
    with serving(tmp_path) as second:
        assert second.get(f"{SESSIONS}/harbour").json()["messages"] == CHAT
        resumed = second.post(f"{SESSIONS}/harbour/resume", {}).json()
        assert (resumed["held_tokens"], resumed["reason"], resumed["messages"]) == (saved["tokens"], None, CHAT)
        assert cached(second, "/v1/chat/completions", {"messages": question}) == saved["tokens"]
        assert delete(second, f"{SESSIONS}/harbour").json() == {"name": "harbour", "deleted": True}
        assert second.get(SESSIONS).json()["data"] == []
        assert second.post(f"{SESSIONS}/harbour/resume", {}).status_code == 404
        second.wait_until_idle()


def test_what_a_model_wrote_keeps_its_tokens_after_a_restart(tmp_path: Path) -> None:
    """Though the tokenizer would cut its text into others."""
    more = {"role": "user", "content": "And the lighthouse?"}
    with serving(tmp_path) as first:
        prompt = ReadPrompt(first.llm.chats.render(CHAT[:1], ChatOptions()), first.llm.chat_prompt(CHAT[:1]))
        answer = CHAT[1]["content"]
        letters = [token for each in answer for token in first.llm.tokenizer(each, add_special_tokens=False).input_ids]
        output = CompletionOutput(0, answer, letters, FinishReason.STOP, None, None, None)
        first.service.transcripts.remember(Scope(""), prompt, output)
        saved = first.post(SESSIONS, {"model": MODEL, "name": "talk", "messages": CHAT}).json()
        assert saved["tokens"] > len(first.llm.chat_prompt(CHAT, add_generation_prompt=False))
    with serving(tmp_path) as second:
        second.post(f"{SESSIONS}/talk/resume", {})
        assert cached(second, "/v1/chat/completions", {"messages": [*CHAT, more]}) == saved["tokens"]


def test_a_tenant_sees_its_own_sessions_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "tenants.toml").write_text(TENANTS)
    folder = tmp_path / "sessions"
    with serving(folder, tmp_path / "tenants.toml") as server:
        body = {"model": MODEL, "name": "story", "prompt": STORY}
        num_tokens = server.post(SESSIONS, body, **key("a")).json()["tokens"]
        assert [each["name"] for each in server.get(SESSIONS, **key("a")).json()["data"]] == ["story"]
        for name in ("b", "operator"):
            assert server.get(SESSIONS, **key(name)).json()["data"] == []
            assert server.get(f"{SESSIONS}/story", **key(name)).status_code == 404
            assert server.post(f"{SESSIONS}/story/resume", {}, **key(name)).status_code == 404
            assert delete(server, f"{SESSIONS}/story", **key(name)).status_code == 404
        assert server.get(f"{SESSIONS}/story", **key("a")).status_code == 200
    with serving(folder, tmp_path / "tenants.toml") as server:
        assert server.post(f"{SESSIONS}/story/resume", {}, **key("a")).json()["held_tokens"] == num_tokens
        prompt = {"prompt": STORY}
        assert cached(server, "/v1/completions", prompt, **key("b")) == 0
        assert cached(server, "/v1/completions", prompt, **key("a")) == num_tokens - 1


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    with serving(tmp_path / "sessions") as server:
        for name in ("", ".", "..", ".hidden", "a/b", "../../etc/passwd", "a\x00b", "a b", "x" * 101, "ä", "a\n"):
            refused = server.post(SESSIONS, {"model": MODEL, "name": name, "prompt": "x"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "name"), name
            quoted = "".join(f"%{each:02x}" for each in name.encode()) or "%2e"
            assert server.get(f"{SESSIONS}/{quoted}").status_code in (400, 404), name
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_bytes_are_bounded_for_each_tenant_and_for_all(tmp_path: Path) -> None:
    (tmp_path / "tenants.toml").write_text(TENANTS)
    folder = tmp_path / "sessions"

    def nbytes() -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    with serving(folder) as server:
        one = server.post(SESSIONS, {"model": MODEL, "name": "one", "prompt": STORY}).json()["bytes"]
        delete(server, f"{SESSIONS}/one")
    options = {"max_session_bytes_per_tenant": 2 * one + one // 2, "max_session_bytes": 3 * one + one // 2}
    with serving(folder, tmp_path / "tenants.toml", **options) as server:
        answers = [
            server.post(SESSIONS, {"model": MODEL, "name": name, "prompt": STORY}, **key(tenant))
            for tenant, name in (("a", "one"), ("a", "two"), ("a", "six"), ("b", "one"), ("b", "two"))
        ]
        assert [each.status_code for each in answers] == [200, 200, 413, 200, 413]
        assert answers[2].json()["error"]["code"] == "session_quota"
        assert nbytes() == 3 * one
        delete(server, f"{SESSIONS}/one", **key("a"))
        again = server.post(SESSIONS, {"model": MODEL, "name": "two", "prompt": STORY}, **key("b"))
        assert again.status_code == 200


def test_another_page_size_is_refused_and_damage_is_told(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.post(SESSIONS, {"model": MODEL, "name": "story", "prompt": STORY})
    with serving(tmp_path, llm={"block_size": 64}) as server:
        refused = server.post(f"{SESSIONS}/story/resume", {})
        assert refused.status_code == 409
        assert "page_tokens" in refused.json()["error"]["message"]
    [path] = tmp_path.rglob(f"*{SUFFIX}")
    path.write_bytes(path.read_bytes()[:-1])
    with serving(tmp_path) as server:
        [listed] = server.get(SESSIONS).json()["data"]
        assert "bytes and says" in listed["error"]
        refused = server.post(f"{SESSIONS}/story/resume", {})
        assert refused.status_code == 409
        assert str(tmp_path) not in refused.text
        assert delete(server, f"{SESSIONS}/story").status_code == 200


def test_a_full_disk_is_told_as_the_fault_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    with serving(tmp_path) as server:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            refused = server.post(SESSIONS, {"model": MODEL, "name": "story", "prompt": STORY})
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "session_not_written")
        assert str(tmp_path) not in refused.text
        assert server.get(SESSIONS).json()["data"] == []
        assert server.post(SESSIONS, {"model": MODEL, "name": "story", "prompt": STORY}).status_code == 200


def test_without_a_folder_it_says_how_to_have_one(strict: Running) -> None:
    for answer in (
        strict.get(SESSIONS),
        strict.get(f"{SESSIONS}/x"),
        delete(strict, f"{SESSIONS}/x"),
        strict.post(SESSIONS, {"model": MODEL, "name": "x", "prompt": "x"}),
        strict.post(f"{SESSIONS}/x/resume", {}),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "sessions_off")
        assert "--session-dir" in answer.json()["error"]["message"]


def test_what_is_wrong_with_a_body_is_named(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for change, param in (({"prompt": None}, "prompt"), ({"messages": CHAT}, "prompt"), ({"title": 5}, "title")):
            refused = server.post(SESSIONS, {"model": MODEL, "name": "x", "prompt": "x", **change})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert server.get(SESSIONS).json()["data"] == []


def test_one_of_the_most_sessions_is_saved_anew_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_folder, "MOST_SESSIONS", 1)
    body = {"model": MODEL, "name": "first", "prompt": STORY}
    with serving(tmp_path) as server:
        assert server.post(SESSIONS, body).status_code == 200
        assert server.post(SESSIONS, body).status_code == 200
        refused = server.post(SESSIONS, body | {"name": "second"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "session_quota")


def test_a_folder_that_goes_is_told_or_made_anew(tmp_path: Path) -> None:
    folder, body = tmp_path / "sessions", {"model": MODEL, "name": "first", "prompt": STORY}
    with serving(folder) as server:
        server.post(SESSIONS, body)
        shutil.rmtree(folder)
        assert server.get(SESSIONS).json()["data"] == []
        assert server.post(SESSIONS, body).status_code == 200
        shutil.rmtree(folder)
        folder.write_text("in its place")
        for answer in (server.post(SESSIONS, body), server.get(SESSIONS)):
            assert (answer.status_code, answer.json()["error"]["code"]) == (507, "session_dir")
            assert str(tmp_path) not in answer.text
        assert delete(server, f"{SESSIONS}/first").status_code == 404
