"""What a request is told that tiers had to do with it: what came from where, and why nothing did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pagoda import LLM, SamplingParams
from pagoda.cache.prefix.held import Reason
from pagoda.cache.report import MissCause
from pagoda.commands.report import RequestCost
from pagoda.errors import TierError
from pagoda.outputs import RequestOutput

PROMPT = list(range(300, 500))
PARAMS = SamplingParams(temperature=0, max_tokens=1)
MIB = 1 << 20


def make(**tiers: Any) -> LLM:
    return LLM(kv_cache_memory_bytes=16 * MIB, block_size=16, num_threads=1, **tiers)


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[LLM]:
    """One that has computed the prompt, which lies on disk alone."""
    with make(kv_disk=str(tmp_path)) as made:
        ask(made)
        evict(made)
        yield made


def ask(llm: LLM) -> RequestOutput:
    return llm.generate([PROMPT], PARAMS)[0]


def evict(llm: LLM) -> None:
    def go() -> None:
        for group in llm.engine._cache.groups:
            group.holdings.evict_all(Reason.ROOM)
        assert llm.engine.residency is not None
        llm.engine.residency.flush()

    llm.loop.call(go).result()


def test_what_came_from_disk_is_told_with_what_was_expected_of_it(llm: LLM) -> None:
    output = ask(llm)
    report = output.cache_report
    assert report.read_tokens == {"device": 0, "disk": len(PROMPT) - 1}
    assert report.cause is MissCause.NONE
    assert report.load is not None
    assert (report.load.num_tokens, report.load.is_loaded) == (len(PROMPT) - 1, True)
    assert output.metrics.wall().promotion > 0
    assert output.time is not None
    assert sum(output.time.wall.values()) == pytest.approx(output.metrics.e2e_seconds)
    assert any("199 prompt tokens came from disk in" in sentence for sentence in output.verdict)
    rows = dict(RequestCost.of(output).rows())
    assert rows["    from disk"] == "199"
    assert rows["    in tiers"].endswith(": loaded")


def test_what_is_faster_to_compute_is_not_loaded_and_says_so(llm: LLM) -> None:
    rates = llm.engine.residency.break_even
    rates.tokens_per_second, rates.bytes_per_second = 1e9, {"disk": 1.0}
    report = ask(llm).cache_report
    assert (report.cause, report.num_read_tokens) == (MissCause.LOAD_REFUSED, 0)
    assert report.missed_tokens == len(PROMPT) - 1
    assert report.load is not None
    assert report.load.load_seconds > report.load.compute_seconds


def test_what_was_damaged_is_computed_and_says_so(llm: LLM, tmp_path: Path) -> None:
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.stat().st_size > MIB // 16:
            data = bytearray(file.read_bytes())
            for place in range(4096, len(data), 512):
                data[place] ^= 1
            file.write_bytes(data)
    report = ask(llm).cache_report
    assert (report.cause, report.num_read_tokens) == (MissCause.LOAD_FAILED, 0)
    assert report.num_failed_records > 0


def test_a_tier_that_is_off_is_named(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    [tier] = llm.engine.residency.tiers
    for _ in range(20):
        tier._failed(TierError("gone"))
    report = ask(llm).cache_report
    assert (report.cause, report.tiers_off) == (MissCause.TIER_OFF, ("disk",))


def test_what_no_tier_kept_went_from_them_as_well(tmp_path: Path) -> None:
    with make(kv_disk=str(tmp_path), kv_write="second-hit") as llm:
        ask(llm)
        evict(llm)
        assert ask(llm).cache_report.cause is MissCause.NOT_IN_TIERS
