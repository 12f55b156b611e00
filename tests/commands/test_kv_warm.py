"""`pagoda kv warm`: documents that are computed once are hit by whoever has a copy of the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pagoda import LLM, SamplingParams
from pagoda.cli import main

PAGE_TOKENS = 16
SYSTEM = "You are the keeper of a lighthouse. Answer from the manual.\n"
DOCUMENTS = [f"Manual {number}. The lamp is lit at dusk and put out at dawn. " * 6 for number in range(2)]
CHAT = [{"role": "user", "content": "The ships pass by night and the log is kept. " * 6}]
ENGINE = ("--kv-cache-memory-bytes", "32MiB", "--num-threads", "1", "--block-size", str(PAGE_TOKENS))
ANSWER = SamplingParams(max_tokens=1)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{number}.txt" for number in range(2)]
    for file, text in zip(files, DOCUMENTS, strict=True):
        file.write_text(text + "\n")
    lines = tmp_path / "chats.jsonl"
    lines.write_text(json.dumps({"messages": CHAT}) + "\n\n" + json.dumps({"text": "A short one."}) + "\n")
    (tmp_path / "system").write_text(SYSTEM)
    return [*files, lines]


def warm(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: Any) -> dict[str, Any]:
    status = main(["kv", "warm", str(folder), *map(str, arguments), *ENGINE, "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return json.loads(captured.out)


def served(folder: Path) -> LLM:
    return LLM(kv_cache_memory_bytes=32 << 20, num_threads=1, block_size=PAGE_TOKENS, kv_disk=str(folder))


def test_a_folder_is_hit_by_who_has_a_copy_of_it(
    tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, prefix = tmp_path / "pages", ("--prefix", tmp_path / "system")
    first = warm(capsys, folder, *files, *prefix)
    assert (first["num_documents"], first["num_there"], first["num_failed"]) == (4, 0, 0)
    assert 0 < first["num_computed_tokens"] <= first["num_tokens"]
    assert first["folder_nbytes"] >= first["written_nbytes"] > 0
    again = warm(capsys, folder, *files, *prefix)
    assert (again["num_there"], again["num_computed_tokens"], again["written_nbytes"]) == (4, 0, 0)
    shutil.copytree(folder, tmp_path / "copy")
    with served(tmp_path / "copy") as writer, served(tmp_path / "copy") as reader:
        assert reader.engine.residency is not None
        assert "only read" in str(reader.engine.residency.report()[0].stats.fault)
        chat = writer.chat_prompt([{"role": "system", "content": SYSTEM.strip()}, *CHAT])
        for llm in (writer, reader):
            for prompt in (*(SYSTEM + text for text in DOCUMENTS), chat):
                [answer] = llm.generate([prompt], ANSWER)
                num_tokens = len(answer.prompt_token_ids)
                assert answer.num_cached_tokens >= (num_tokens - 1) // PAGE_TOKENS * PAGE_TOKENS
                assert answer.cache_report.read_tokens["disk"] > num_tokens // 2


def test_a_document_that_does_not_fit_is_named_and_the_others_are_stored(
    tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / "long.txt"
    long.write_text("lamp " * 2000)
    arguments = [str(each) for each in (long, files[0])]
    assert main(["kv", "warm", str(tmp_path / "pages"), *arguments, *ENGINE, "--max-model-len", "256"]) == 1
    captured = capsys.readouterr()
    assert str(long) in captured.err
    assert "1 failed" in captured.out


def test_a_folder_that_is_written_to_is_refused(
    tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with served(tmp_path / "pages"):
        assert main(["kv", "warm", str(tmp_path / "pages"), str(files[0]), *ENGINE]) == 1
    assert "Another process writes" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"messages": [}', '{"nothing": 1}', "[1, -2]", ""])
def test_what_is_no_prompt_is_named(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "wrong.jsonl"
    file.write_text(text)
    assert main(["kv", "warm", str(tmp_path / "pages"), str(file), *ENGINE]) == 2
    assert "wrong.jsonl" in capsys.readouterr().err or not text
