"""What the pages of a running server are of, and why a prompt misses where another server has computed it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pagoda import LLM
from pagoda.cli import main
from pagoda.engine import engine as engine_module
from pagoda.models.digest import weights_digest
from pagoda.models.plain_tokenizer import load_plain_tokenizer
from server.running import TENANTS, Running, running, wait_until

RULES = "You are the keeper of a lighthouse. Answer in one sentence, and never of the war. " * 3

load_once = cache(load_plain_tokenizer)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a second, all of it in a child process."""
    monkeypatch.setattr("pagoda.commands.explain.load_plain_tokenizer", load_once)


@pytest.fixture(scope="module")
def other() -> Iterator[Running]:
    """A server of the same model whose pages are smaller, and of another format."""
    with (
        LLM(kv_cache_memory_bytes=8 << 20, num_threads=1, kv_cache_dtype="int8", block_size=16) as llm,
        running(llm) as server,
    ):
        yield server


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for name, question in (("earlier.json", "Where is the harbour?"), ("later.json", "And the ships?")):
        messages = [{"role": "system", "content": RULES}, {"role": "user", "content": question}]
        (tmp_path / name).write_text(json.dumps({"messages": messages}), encoding="utf-8")
    return [str(tmp_path / "earlier.json"), str(tmp_path / "later.json")]


def identity(server: Running) -> dict[str, Any]:
    response = server.get("/v1/kv/identity")
    assert response.status_code == 200, response.text
    return response.json()


def test_formats_and_page_sizes_can_be_read(server: Running, other: Running) -> None:
    mine, theirs = identity(server), identity(other)
    assert (mine["format"], mine["page_tokens"], mine["adapter"]) == ("bf16", 32, "")
    assert (theirs["format"], theirs["page_tokens"]) == ("int8", 16)
    assert mine["layout"].startswith("full: 8 x AttentionLayout(num_kv_heads=2,")
    changed = {name for name in mine if mine[name] != theirs[name]}
    assert changed == {"digest", "format", "constants", "page_tokens"}
    assert identity(server) == mine


def test_admins_alone_are_told(llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(TENANTS)
    with running(llm, tenants=file) as server:
        refused = server.get("/v1/kv/identity", headers={"x-api-key": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_only")
        assert server.get("/v1/kv/identity").status_code == 401
        assert server.get("/v1/kv/identity", headers={"x-api-key": "operator"}).json()["format"] == "bf16"


def test_weights_are_read_once_while_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks waits; nobody else does, and whoever goes away stops nothing."""
    calls, may_end = [], threading.Event()

    def slowly(network: Any, _origin: Any) -> str:
        calls.append(network)
        assert may_end.wait(60)
        return weights_digest(network)

    monkeypatch.setattr(engine_module, "kept_weights_digest", slowly)
    with LLM(kv_cache_memory_bytes=8 << 20, num_threads=1) as llm, running(llm) as server:
        answers: list[dict[str, Any]] = []
        asking = [threading.Thread(target=lambda: answers.append(identity(server))) for _ in range(2)]
        for each in asking:
            each.start()
        wait_until(lambda: calls)
        body = {"model": "pagoda-tiny", "prompt": "The sea was calm", "max_tokens": 2}
        assert server.post("/v1/completions", body).status_code == 200
        assert answers == []
        may_end.set()
        for each in asking:
            each.join()
        assert identity(server) == answers[0] == answers[1]
        assert len(calls) == 1


def test_other_pages_explain_a_miss(server: Running, other: Running, files: list[str], capsys) -> None:
    ask = ["explain", *files, "--url", server.url, "--url", other.url]
    assert main([*ask, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cause"], found["place"]["token"], found["reused_tokens"]) == ("other_namespace", 0, 0)
    parts = {part["field"]: (part["earlier"], part["later"]) for part in found["parts"]}
    assert (parts["format"], parts["page_tokens"]) == (("bf16", "int8"), ("32", "16"))
    assert main(ask) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "The whole prompt misses." in shown
    assert "format bf16 and int8" in shown
    assert "page size (tokens) 32 and 16" in shown


def test_where_pages_are_of_the_same_the_prompts_decide(other: Running, files: list[str], capsys) -> None:
    assert main(["explain", *files, "--url", other.url, "--url", other.url, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cause"], found["parts"], found["page_tokens"]) == ("message_edited", [], 16)
    assert found["reused_tokens"] == found["place"]["token"] > 0


def test_a_saved_answer_stands_for_a_server(server: Running, other: Running, files, capsys, tmp_path: Path) -> None:
    saved = []
    for each in (server, other):
        saved.append(str(tmp_path / f"{len(saved)}.json"))
        Path(saved[-1]).write_text(each.get("/v1/kv/identity").text, encoding="utf-8")
    assert main(["explain", *files, "--identity", *saved, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cause"] == "other_namespace"
    assert main(["explain", *files, "--identity", saved[1], saved[1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cause"] == "message_edited"


def test_who_cannot_be_asked_is_named(server: Running, files: list[str], llm: LLM, capsys) -> None:
    assert main(["explain", *files, "--url", server.url, "--url", "http://127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1 does not answer" in capsys.readouterr().err
    assert main(["explain", *files, "--url", server.url, "--url", f"{server.url}/elsewhere"]) == 1
    assert f"{server.url}/elsewhere refuses to say" in capsys.readouterr().err
    assert main(["explain", *files, "--url", server.url, "--url", "ftp://a"]) == 2
    with running(llm, api_key=("user",), admin_api_key=("admin",)) as closed:
        ask = ["explain", *files, "--url", closed.url, "--url", closed.url, "--api-key"]
        assert main([*ask, "user"]) == 1
        assert "use an admin's key" in capsys.readouterr().err
        assert main([*ask, "admin"]) == 0
