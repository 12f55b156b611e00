"""`pagoda bench --report`: a page of what was run, which is written over nothing unless that is wanted."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from oracle.families import build_tiny
from pagoda.analysis.run_record import ScenarioRecord
from pagoda.cli import main
from pagoda.commands.recording import RecordedLLM, page_kinds, record
from pagoda.commands.scenarios import SCENARIOS, Workload
from pagoda.errors import ConfigError
from pagoda.models.model import Model
from pagoda.sampling_params import SamplingParams

BENCH = ["bench", "--scenario", "cache", "--prompt-tokens", "64", "--output-tokens", "3", "--repeats", "1"]
ENGINE = ["--kv-cache-memory-bytes", "8MiB"]


def test_the_report_is_one_page_of_every_scenario(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.html"
    assert main([*BENCH, *ENGINE, "--report", str(file)]) == 0
    assert str(file) in capsys.readouterr().out.replace("\n", "")
    page = file.read_text(encoding="utf-8")
    for words in (
        "Scenario: cache, prefix caching on",
        "Scenario: cache, prefix caching off",
        "Pagoda bench: embedded",
    ):
        assert words in page
    assert page.count("<td>request 1</td>") == page.count("<td>request 2</td>") == 2
    # The second turn found the first and its answer, where there was a cache.
    found = [int(each) for each in re.findall(r"(\d+) of 147 prompt tokens were found", page)]
    assert found == [66, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("taken.html", "--force"), ("folder", "is a folder"), ("missing/report.html", "There is no folder")],
)
def test_what_cannot_be_written_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    (tmp_path / "taken.html").write_text("mine")
    (tmp_path / "folder").mkdir()
    assert main([*BENCH, *ENGINE, "--report", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    assert (tmp_path / "taken.html").read_text() == "mine"


def test_a_file_is_written_over_if_that_is_wanted(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("mine")
    assert main([*BENCH, *ENGINE, "--report", str(file), "--force"]) == 0
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")


def recorded(family: str, **options: object) -> tuple[ScenarioRecord, RecordedLLM]:
    model = Model.from_transformers(build_tiny(family))
    with RecordedLLM(model, kv_cache_memory_bytes=8 << 20, **options) as llm:
        workload = Workload(prompt_tokens=40, output_tokens=12, batch=3, repeats=1)
        measured = SCENARIOS["shared-prefix"].measure(llm, workload, "shared-prefix")
        found = record(llm, "shared-prefix", lambda: SCENARIOS["shared-prefix"].once(llm, workload), measured)
    return found, llm


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", ["llama", "gemma2", "jamba", "mamba"])
def test_what_is_recorded_is_what_the_cache_had(family: str) -> None:
    found, llm = recorded(family)
    assert [request.name for request in found.requests] == ["request 1", "request 2", "request 3"]
    assert len(found.figures) == 4
    kinds = page_kinds(llm.engine.memory)
    assert found.kinds == [kind.name for kind in kinds]
    first, last = found.samples[0], found.samples[-1]
    assert (first.queried_tokens, first.hit_tokens, sum(first.in_use), sum(first.idle)) == (0, 0, 0, 0)
    assert last.queried_tokens == sum(request.time.num_prompt_tokens for request in found.requests)
    assert last.hit_tokens == sum(request.time.num_cached_tokens for request in found.requests)
    assert sum(last.in_use) == 0
    peak = found.peak
    assert peak is not None
    assert all(0 <= unfilled <= in_use for unfilled, in_use in zip(peak.unfilled, peak.in_use, strict=True))
    for request in found.requests:
        spans = request.spans
        assert [phase for phase, *_ in spans] == ["queue", "prefill", "decode"]
        assert all(stop == start for (_, _, stop), (_, start, _) in pairwise(spans))
        assert spans[-1][2] - spans[0][1] == pytest.approx(request.time.seconds)
        assert 0 <= spans[0][1] < spans[-1][2] <= last.seconds
    for pages, total in zip(found.maps, (each.total for each in llm.engine.inspector.stats().groups), strict=True):
        assert len(pages.states) * pages.stride + pages.num_free_after >= total


def test_only_what_was_generated_in_the_recorded_run_counts() -> None:
    with RecordedLLM(kv_cache_memory_bytes=8 << 20) as llm:
        params = SamplingParams(max_tokens=2)
        llm.generate([[5, 6, 7]], params)
        found = record(llm, "one", lambda: llm.generate([[5, 6, 7, 8]], params), [])
    assert [request.time.num_prompt_tokens for request in found.requests] == [4]
    assert found.requests[0].time.num_cached_tokens == 0, "the cache is empty when a recording begins"


def test_what_was_recorded_before_a_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ConfigError("no room")

    scenarios = {"single": SCENARIOS["single"], "broken": replace(SCENARIOS["single"], repeat=fail)}
    monkeypatch.setattr("pagoda.commands.bench.SCENARIOS", scenarios)
    file = tmp_path / "report.html"
    sizes = ["--prompt-tokens", "64", "--output-tokens", "3", "--repeats", "1"]
    assert main(["bench", *sizes, *ENGINE, "--report", str(file)]) == 2
    assert "no room" in capsys.readouterr().err
    assert "Scenario: single" in file.read_text(encoding="utf-8")


def test_a_folder_that_takes_no_file_is_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BENCH, *ENGINE, "--report", "/proc/report.html"]) == 2
    assert "cannot be written" in capsys.readouterr().err
