"""The simulator against the engine: the same requests find the same and evict the same.

Requests share system prompts, go on turn by turn with what the model said, and part in the middle of pages; the pool is
small enough that pages go all the time. The simulated run is told what the engine answered.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import replace
from functools import cache

import pytest

from engine.tiny import VOCABULARY, tiny_model, windowed_model
from pagoda import SamplingParams
from pagoda.analysis.simulation.rates import Rates
from pagoda.analysis.simulation.replay import replay
from pagoda.analysis.simulation.settings import Settings
from pagoda.analysis.simulation.tiers import TierOptions
from pagoda.analysis.simulation.timed import Timing, simulate
from pagoda.analysis.traces.trace import Kind, Trace, TracedRequest
from pagoda.analysis.traces.workload import prepare
from pagoda.cache.prefix.held import Reason
from pagoda.cache.residency.admission import WritePolicy
from pagoda.cache.residency.writer import Writer
from pagoda.config import WRITE_POLICIES, EngineConfig
from pagoda.engine.engine import Engine
from pagoda.engine.request import new_request
from pagoda.kernels.dispatch import choose_kernels
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.loader import load_model
from pagoda.models.model import Model
from pagoda.registry import names

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_REQUESTS = 120
PAGE_TOKENS = 16
NUM_PAGES = 40
STEP_TOKENS = 96
# Of the tiny model, and of the embedded one, whose pages are large beside what tiers add to them.
TINY_PAGE_NBYTES = 8192
PAGE_NBYTES = 65536


tiny = cache(tiny_model)


def engine_of(policy: str, model: Model | None = None, nbytes: int = NUM_PAGES * TINY_PAGE_NBYTES, **options) -> Engine:
    config = EngineConfig(
        block_size=PAGE_TOKENS,
        kv_cache_memory_bytes=nbytes,
        eviction_policy=policy,
        max_num_batched_tokens=STEP_TOKENS,
        max_num_seqs=16,
        num_threads=1,
        **options,
    )
    return Engine(model or tiny(), choose_kernels(config.environment, False), config)


class Talks:
    """What is asked next, after what was answered: some begin anew, some go on, some repeat or change their minds."""

    def __init__(self, seed: int, vocabulary: int = VOCABULARY) -> None:
        self._draw = random.Random(seed)
        self._vocabulary = vocabulary
        self._systems = [self._words(length) for length in (21, 48, 70)]
        self._talks: list[list[int]] = []

    def next_prompt(self) -> tuple[int | None, list[int]]:
        """Of a talk, or of none, to be told of the answer."""
        draw, chance = self._draw, self._draw.random()
        if not self._talks or chance < 0.3:
            self._talks.append(draw.choice(self._systems) + self._words(draw.randrange(1, 90)))
            return len(self._talks) - 1, [*self._talks[-1]]
        index = draw.randrange(max(0, len(self._talks) - 8), len(self._talks))
        talk = self._talks[index]
        if chance < 0.4:
            return None, [*talk]
        if chance < 0.55:
            return None, talk[: draw.randrange(1, len(talk))] + self._words(draw.randrange(1, 30))
        talk += self._words(draw.randrange(1, 25))
        del talk[400:]
        return index, [*talk]

    def answered(self, index: int | None, answer: list[int]) -> None:
        if index is not None:
            self._talks[index] += answer

    def _words(self, length: int) -> list[int]:
        return [self._draw.randrange(self._vocabulary) for _ in range(length)]


def traced(line: int, prompt: list[int], answer: list[int], tenant: str = "") -> TracedRequest:
    start = array("i", prompt)
    return TracedRequest(line, len(prompt), len(answer), start, start + array("i", answer[:-1]), 0.0, tenant)


def workload(requests):
    return prepare(Trace(Kind.TOKENS, 1, tuple(requests)), PAGE_TOKENS)


def settings_of(policy: str) -> Settings:
    return Settings(policy=policy, step_tokens=STEP_TOKENS, max_num_seqs=16)


def ask(engine: Engine, number: int, prompt: list[int], num_tokens: int):
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    request = new_request(str(number), prompt, params)
    engine.add(request)
    return request


def run(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def answer_of(request) -> list[int]:
    assert request.error is None
    return request.sequences[0].output_tokens


def run_one_at_a_time(engine: Engine, talks: Talks, draw: random.Random) -> tuple[list[int], list[TracedRequest]]:
    """What the engine finds of each prompt, and the trace of them with its answers."""
    hits, requests = [], []
    for number in range(NUM_REQUESTS):
        index, prompt = talks.next_prompt()
        request = ask(engine, number, prompt, draw.randrange(1, 5))
        run(engine)
        talks.answered(index, answer_of(request))
        hits.append(request.num_cached_tokens)
        requests.append(traced(number, prompt, answer_of(request)))
    return hits, requests


@pytest.mark.parametrize("policy", names("eviction"))
def test_one_at_a_time(policy):
    engine, talks, draw = engine_of(policy), Talks(seed=1), random.Random(2)
    hits, requests = run_one_at_a_time(engine, talks, draw)
    counts = replay(workload(requests), settings_of(policy), NUM_PAGES, lambda _: None)
    assert counts.hit_tokens.tolist() == hits
    assert counts.evicted_pages[Reason.ROOM] == engine.inspector.stats().evicted_pages > NUM_PAGES
    assert sum(hits) > 0


def test_windows():
    """Pages of two groups, of which those behind a window go though others continue them."""
    model = windowed_model("float32")
    engine, talks, draw = engine_of("lru", model, nbytes=400_000), Talks(seed=5), random.Random(6)
    hits, requests = run_one_at_a_time(engine, talks, draw)
    settings = replace(settings_of("lru"), memory=engine.memory)
    counts = replay(workload(requests), settings, max(engine.memory.num_pages), lambda _: None)
    assert counts.hit_tokens.tolist() == hits
    assert counts.evicted_pages[Reason.ROOM] == engine.inspector.stats().evicted_pages > 0
    assert sum(hits) > 0


@pytest.mark.parametrize("policy", names("eviction"))
def test_many_at_once(policy):
    """Batched, chunked, waiting for one another, and sent back when pages run short."""
    engine, talks, draw = engine_of(policy), Talks(seed=3), random.Random(4)
    asked = []
    for number in range(NUM_REQUESTS // 2):
        _, prompt = talks.next_prompt()
        asked.append(ask(engine, number, prompt, draw.randrange(1, 90)))
    run(engine)
    requests = [traced(number, each.prompt, answer_of(each)) for number, each in enumerate(asked)]
    timing = Timing(rates=Rates(1000.0, 100.0))
    counts = simulate(workload(requests), settings_of(policy), NUM_PAGES, timing, lambda _: None)
    assert counts.hit_tokens.tolist() == [each.num_cached_tokens for each in asked]
    assert counts.evicted_pages[Reason.ROOM] == engine.inspector.stats().evicted_pages > NUM_PAGES
    assert counts.times is not None
    assert counts.times.num_preemptions == sum(each.metrics.num_preemptions for each in asked) > 0


class WaitingWriter(Writer):
    """Writes when it is flushed, so that what is read and what is written meet in one order."""

    def _wake(self) -> None:
        """Nobody writes yet."""

    def flush(self, seconds: float | None = None) -> bool:
        with self._changed:
            super()._wake()
        return super().flush(seconds)


@pytest.mark.parametrize("write", WRITE_POLICIES)
def test_tiers(write, tmp_path, monkeypatch):
    """Host memory and a disk that are both too small: where each token was found, and what was written."""
    monkeypatch.setattr("pagoda.cache.residency.movers.Writer", WaitingWriter)
    # How fast this machine happens to be must not decide what is loaded.
    monkeypatch.setattr("pagoda.cache.residency.break_even.BreakEven.computed", lambda *_: None)
    config = {"kv_host_bytes": 60 * 66_000, "kv_disk": str(tmp_path), "kv_disk_bytes": 130 * 66_000, "kv_write": write}
    model = load_model(EMBEDDED_MODEL)
    engine = engine_of("lru", model, NUM_PAGES * PAGE_NBYTES, **config)
    talks, draw = Talks(7, model.vocab_size), random.Random(8)
    names, hits = ("host", "disk"), {"host": [], "disk": []}
    requests = []
    for number in range(NUM_REQUESTS):
        index, prompt = talks.next_prompt()
        request = ask(engine, number, prompt, draw.randrange(1, 5))
        run(engine)
        engine.residency.flush()
        talks.answered(index, answer_of(request))
        for name in names:
            hits[name].append(request.cache_report.read_tokens.get(name, 0))
        requests.append((request.num_cached_tokens, traced(number, prompt, answer_of(request))))
    tiers = TierOptions(host_size=config["kv_host_bytes"], disk_size=config["kv_disk_bytes"], write=WritePolicy(write))
    settings = replace(settings_of("lru"), tiers=tiers, page_nbytes=(PAGE_NBYTES,))
    counts = replay(workload(each for _, each in requests), settings, NUM_PAGES, lambda _: None)
    assert counts.hit_tokens.tolist() == [found for found, _ in requests]
    for report in engine.residency.report():
        told = counts.tiers[report.name]
        assert told.hit_tokens.tolist() == hits[report.name]
        assert (told.written_nbytes, told.num_dropped) == (report.stats.written_nbytes, report.stats.num_dropped)
        assert told.num_hit_tokens > 0
    engine.close()
