"""What llm-comply says of each API, with a model whose answers end: it writes "H." and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pagoda import LLM
from pagoda.llm import EMBEDDED_MODEL
from server.running import MODEL, MOST_SECONDS, Running, running
from server.scripted import scripted_model


@pytest.fixture(scope="module")
def brief():
    with (
        LLM(scripted_model("H."), tokenizer=EMBEDDED_MODEL, kv_cache_memory_bytes=8 << 20, num_threads=1) as llm,
        running(llm) as server,
    ):
        yield server


@pytest.mark.parametrize("format", ["openai-chat", "open-responses", "anthropic"])
def test_all_complies(brief: Running, format: str) -> None:
    command = [str(Path(sys.executable).parent / "llm-comply"), "run", "--json", "--format", format]
    command += ["-u", brief.url + "/v1", "-m", MODEL, "-k", "none"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=MOST_SECONDS)
    results = {each["id"]: each for each in json.loads(done.stdout)["results"]}
    assert {name: each["errors"] for name, each in results.items() if each["status"] == "failed"} == {}
    assert sum(each["status"] == "passed" for each in results.values()) > 5
