"""`--kv-prewarm`: what is computed in advance is hit by the first request, of every tenant."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path

import pytest

from pagoda import LLM
from pagoda.cli import build_parser
from pagoda.commands.options import SERVER_OPTIONS, options_given
from pagoda.commands.prewarm import Prewarm
from pagoda.commands.prompt_files import NamedPrompt, prompt_texts, read_prompts
from pagoda.commands.request_file import RequestFiles
from pagoda.server.ground.options import ServerOptions
from server.running import MODEL, MOST_SECONDS, TENANTS, Running, running

STORY = "The room was a pleasant one, at the top of the house, overlooking the sea. " * 60
MESSAGES = [{"role": "system", "content": "You are the keeper of a lighthouse. " * 20}]


@pytest.fixture(scope="module")
def llm():
    with LLM(kv_cache_memory_bytes=64 << 20, num_threads=1) as llm:
        yield llm


@pytest.fixture
def prompts(llm: LLM, tmp_path: Path) -> list[NamedPrompt]:
    llm.reset_prefix_cache()
    (tmp_path / "story.txt").write_text(STORY + "\n")
    (tmp_path / "chat.json").write_text(json.dumps(MESSAGES))
    with closing(RequestFiles(llm.tokenizer, llm.engine.max_model_len)) as requests:
        return read_prompts(prompt_texts([tmp_path / "story.txt", tmp_path / "chat.json"]), requests)


def cached(server: Running, path: str, body: dict, key: str) -> tuple[int, int]:
    answer = server.post(path, {"model": MODEL, "max_tokens": 1, **body}, headers={"x-api-key": key})
    usage = answer.json()["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


def test_the_first_request_of_every_tenant_hits(
    llm: LLM, prompts: list[NamedPrompt], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(TENANTS)
    with running(llm, tenants=file) as server, caplog.at_level("INFO", "pagoda.prewarm"):
        prewarm = Prewarm(server.service.backend, prompts, ["a", "b"], lambda: False)
        prewarm.start()
        prewarm.join()
        for key in ("a", "b"):
            found, asked = cached(server, "/v1/completions", {"prompt": STORY}, key)
            assert found == asked - 1
            found, asked = cached(
                server, "/v1/chat/completions", {"messages": [*MESSAGES, {"role": "user", "content": "Hi"}]}, key
            )
            assert asked - found < 32
    assert [record.message for record in caplog.records][-1] == "prewarm done"
    assert caplog.records[-1].fields["failed"] == 0
    before = caplog.records[-1].fields["computed_tokens"]
    with caplog.at_level("INFO", "pagoda.prewarm"):
        again = Prewarm(server.service.backend, prompts, ["a", "b"], lambda: False)
        again.start()
        again.join()
    assert (before > 0, caplog.records[-1].fields["computed_tokens"]) == (True, 0)


def test_it_ends_with_the_server_and_waits_for_who_is_served(
    llm: LLM, prompts: list[NamedPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagoda.commands.prewarm.MOST_WAIT_SECONDS", 1e9)
    asked = threading.Event()

    def is_busy() -> bool:
        asked.set()
        return True

    with running(llm) as server:
        prewarm = Prewarm(server.service.backend, prompts, [""], is_busy)
        prewarm.start()
        assert asked.wait(MOST_SECONDS)
        assert llm.cache_stats().groups[0].idle == 0
        prewarm.close()


def test_files_are_options_of_the_server(tmp_path: Path) -> None:
    arguments = build_parser().parse_args(["serve", "--kv-prewarm", "a.txt", "--kv-prewarm", "b.jsonl"])
    options = ServerOptions(**options_given(arguments, SERVER_OPTIONS))
    assert list(options.kv_prewarm) == [Path("a.txt"), Path("b.jsonl")]
