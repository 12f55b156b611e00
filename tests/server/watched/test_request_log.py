"""The request log: a line for each request, no text in it, and what `pagoda simulate` makes of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pagoda import LLM
from pagoda.analysis.simulation.replay import replay
from pagoda.analysis.simulation.settings import Settings
from pagoda.analysis.traces.reading import ReadOptions, read_trace
from pagoda.analysis.traces.workload import prepare
from pagoda.errors import ConfigError
from pagoda.server.watched.request_log import RequestLog
from server.process import Process
from server.running import MODEL, Running, running, wait_until

STORY = "The sea was calm and the old captain told again what he had told them every night of the voyage: "


@contextmanager
def logged(llm: LLM, file: Path, **options: Any) -> Iterator[Running]:
    llm.reset_prefix_cache()
    with running(llm, **options) as server:
        log = RequestLog(file, server.service.backend.page_names, server.service.backend.pages.page_tokens)
        server.service.log_request = log.add
        yield server
        server.wait_until_idle()
    log.close()


def complete(server: Running, prompt: str, **more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True, **more}
    return server.post("/v1/completions", body).json()


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def found(file: Path) -> list[int]:
    """What a simulation of the log finds, with room for all."""
    requests = prepare(read_trace(file, ReadOptions(tokens=lambda: pytest.fail("it has no text"))), 32)
    return replay(requests, Settings(), 1000, lambda _: None).hit_tokens.tolist()


def test_a_simulation_finds_what_the_engine_found(llm: LLM, tmp_path: Path) -> None:
    """To the page; and all but the last token where the same is asked again."""
    file = tmp_path / "requests.jsonl"
    with logged(llm, file) as server:
        prompts = [STORY * 3, STORY * 3, STORY * 3 + "a whale", STORY + "another tale", STORY * 5, "The sea"]
        answers = [complete(server, prompt) for prompt in prompts]
        # Goes on with what was answered, beyond the end of the prompt's last page.
        talk = prompts[4] + complete(server, prompts[4], max_tokens=60)["choices"][0]["text"]
        complete(server, talk + " And then")
    lines, hits = lines_of(file), found(file)
    engine = [line["cached_tokens"] for line in lines]
    assert [line["input_length"] for line in lines[:6]] == [each["usage"]["prompt_tokens"] for each in answers]
    assert all(hit == cached or hit == cached // 32 * 32 for hit, cached in zip(hits, engine, strict=True))
    assert hits[1] == engine[1] == lines[1]["input_length"] - 1
    assert hits[7] > lines[4]["input_length"]


def test_it_tells_lengths_and_times_and_no_text(llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    with logged(llm, file) as server:
        complete(server, STORY, cache_salt="secret pepper", n=2)
        server.post("/v1/completions", {"model": MODEL, "prompt": STORY, "max_tokens": 0})
    first, second = lines_of(file)
    assert (first["output_length"], first["samples"], first["finish_reason"]) == (4, 2, "length")
    assert second["output_length"] == 0
    assert 0 < first["ttft_ms"] <= first["e2e_ms"]
    assert first["arrival_ms"] > 1.7e12
    assert len(first["pages"]) == (first["input_length"] + 3) // 32
    assert first["prompt_tail"] != second["prompt_tail"], "another salt"
    assert second["salt"] is None
    text = file.read_text()
    assert not any(word in text for word in ("pepper", "captain", "sea", "token_ids"))
    assert file.stat().st_mode & 0o077 == 0


def test_tenants_are_told_apart(llm: LLM, tmp_path: Path) -> None:
    tenants, file = tmp_path / "tenants.toml", tmp_path / "requests.jsonl"
    tenants.write_text('[tenants.a]\napi_key = "a"\n[tenants.b]\napi_key = "b"\n')
    with logged(llm, file, tenants=tenants) as server:
        for key in ("a", "b", "a"):
            headers = {"authorization": f"Bearer {key}"}
            server.post("/v1/completions", {"model": MODEL, "prompt": STORY, "max_tokens": 2}, headers=headers)
    lines = lines_of(file)
    assert [line["tenant"] for line in lines] == ["a", "b", "a"]
    assert lines[0]["prompt_tail"] == lines[2]["prompt_tail"] != lines[1]["prompt_tail"]
    assert found(file) == [0, 0, lines[2]["input_length"] - 1]


class TestFile:
    @pytest.fixture
    def names(self, llm: LLM):
        return llm.engine.page_names

    def test_something_else_is_not_added_to(self, names, tmp_path):
        for content in ("a diary\n", '{"log": "of another kind"}\n', "[]"):
            file = tmp_path / "file"
            file.write_text(content)
            with pytest.raises(ConfigError, match="holds something else than a request log"):
                RequestLog(file, names, 32)
            assert file.read_text() == content

    @pytest.mark.parametrize("place", ["", "missing/requests.jsonl"])
    def test_one_that_cannot_be_written_is_told_at_once(self, names, tmp_path, place):
        with pytest.raises(ConfigError, match="cannot be written"):
            RequestLog(tmp_path / place, names, 32)

    def test_a_log_is_added_to_even_if_its_last_line_was_cut(self, llm, tmp_path):
        file = tmp_path / "requests.jsonl"
        with logged(llm, file) as server:
            complete(server, STORY)
        with file.open("a") as stream:
            stream.write('{"log": "pagoda.req')
        with logged(llm, file) as server:
            complete(server, STORY)
        trace = read_trace(file, ReadOptions(tokens=lambda: pytest.fail("it has no text")))
        assert len(trace.requests) == 2
        assert [fault.line for fault in trace.faults] == [2]

    def test_a_full_disk_is_told_of_once_and_the_server_goes_on(self, llm, caplog):
        caplog.set_level(logging.WARNING, "pagoda.server.watched.request_log")
        with logged(llm, Path("/dev/full")) as server:
            for _ in range(3):
                assert complete(server, STORY)["usage"]["completion_tokens"] == 4
        wait_until(lambda: caplog.records)
        assert ["cannot be written" in record.getMessage() for record in caplog.records] == [True]


def test_the_command_has_it(tmp_path):
    file = tmp_path / "requests.jsonl"
    with Process(0, "--request-log", str(file)) as process:
        import httpx2

        body = {"model": MODEL, "prompt": STORY, "max_tokens": 2}
        assert httpx2.post(process.url + "/v1/completions", json=body, timeout=60).status_code == 200
        wait_until(lambda: file.read_text().endswith("\n"))
    assert lines_of(file)[0]["log"] == "pagoda.requests/1"
