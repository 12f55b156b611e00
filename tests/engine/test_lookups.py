"""Every request is told what the cache had of its prompt and why it had no more, by an engine on a tiny model."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from engine.tiny import VOCABULARY
from oracle.families import build_tiny
from pagoda import LLM, SamplingParams
from pagoda.cache.leases import Breakpoint
from pagoda.cache.report import CacheReport, MissCause
from pagoda.config import EngineConfig
from pagoda.engine.engine import Engine
from pagoda.engine.request import Request, new_request
from pagoda.errors import ConfigError
from pagoda.kernels.dispatch import choose_kernels
from pagoda.models.model import Model

PAGE_TOKENS = 16
PAGE_NBYTES = 2 * 2 * 2 * 16 * 4 * PAGE_TOKENS  # planes x layers x KV heads x width x fp32 x tokens
NUM_PAGES = 16


class Reported:
    """An engine whose clock stands still, and the reports on what it serves."""

    def __init__(self, model: Model, nbytes: int = NUM_PAGES * PAGE_NBYTES, **options: Any) -> None:
        options = {"block_size": PAGE_TOKENS, "max_num_batched_tokens": 64, "max_num_seqs": 4, **options}
        config = EngineConfig(kv_cache_memory_bytes=nbytes, num_threads=1, **options)
        self.now = 0.0
        self.engine = Engine(model, choose_kernels(config.environment), config, clock=lambda: self.now)
        self._ids = count()

    def run(self, tokens: list[int], **options: Any) -> Request:
        params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, **options.pop("params", {}))
        request = new_request(f"r{next(self._ids)}", tokens, params, **options)
        self.engine.add(request)
        while self.engine.has_work:
            self.engine.step()
        return request

    def report(self, tokens: list[int], **options: Any) -> CacheReport:
        report = self.run(tokens, **options).cache_report
        assert report is not None
        assert report.prompt_tokens == report.num_read_tokens + report.uncached_tokens == len(tokens)
        return report

    def flood(self) -> Request:
        return [self.run(tokens(100, seed=50 + number)) for number in range(6)][-1]


def tokens(num_tokens: int, seed: int = 0) -> list[int]:
    return [(7 * seed + 3 * place + place * place * (seed + 1)) % VOCABULARY for place in range(num_tokens)]


def test_hits_misses_and_what_goes_on(model: Model) -> None:
    served = Reported(model)
    assert served.report(tokens(100)).cause is MissCause.NEVER_SEEN
    again = served.report(tokens(100))
    assert (again.cause, again.first_missed_token, again.read_tokens) == (MissCause.NONE, None, {"device": 99})
    edited = served.report([*tokens(50), *tokens(50, seed=3)])
    assert (edited.cause, edited.first_missed_token, edited.missed_tokens) == (MissCause.INPUT_CHANGED, 50, 0)
    asked = served.run(tokens(60, seed=9))
    goes_on = [*asked.prompt, *asked.sequences[0].output_tokens, *tokens(9, seed=4)]
    report = served.report(goes_on)
    assert (report.cause, report.num_read_tokens) == (MissCause.CONTINUED, 62)


def test_an_evicted_an_expired_and_a_reset_prefix_are_told_apart(model: Model) -> None:
    served = Reported(model)
    served.run(tokens(100))
    flood = served.flood()
    evicted = served.report(tokens(100))
    assert (evicted.cause, evicted.policy, evicted.first_missed_token) == (MissCause.EVICTED, "lru", 0)
    assert evicted.missed_tokens >= 96
    assert evicted.gone_for is not None
    assert int(evicted.gone_for[1:]) <= int(flood.request_id[1:])

    served.run(tokens(100, seed=1), breakpoints=(Breakpoint(100, 300.0),))
    served.flood()
    assert served.report(tokens(100, seed=1)).cause is MissCause.NONE
    served.now += 301
    served.flood()
    expired = served.report(tokens(100, seed=1))
    assert (expired.cause, expired.first_missed_token) == (MissCause.TTL_EXPIRED, 0)

    served.run(tokens(100, seed=2))
    served.engine.reset_prefix_cache()
    reset = served.report(tokens(100, seed=2))
    assert (reset.cause, reset.gone_for, reset.policy) == (MissCause.RESET, None, None)
    assert reset.gone_at is not None


@pytest.mark.parametrize(("place", "cause"), [(33, MissCause.INPUT_CHANGED), (80, MissCause.EVICTED)])
def test_an_edit_that_costs_more_than_what_went_is_the_cause(model: Model, place: int, cause: MissCause) -> None:
    served, asked = Reported(model), tokens(120)
    served.run(asked)
    served.flood()
    report = served.report([*asked[:place], (asked[place] + 1) % VOCABULARY, *asked[place + 1 :]])
    assert report.cause is cause
    assert report.missed_tokens == place // PAGE_TOKENS * PAGE_TOKENS
    assert report.gone_at is not None


def test_a_new_question_after_instructions_that_went_is_no_edit(model: Model) -> None:
    served = Reported(model)
    served.run([*tokens(33), *tokens(80, seed=7)])
    served.flood()
    assert served.report([*tokens(33), *tokens(80, seed=11)]).cause is MissCause.EVICTED


@pytest.mark.parametrize(("whose", "is_told"), [("b", False), ("a", True)])
def test_a_tenant_is_told_when_pages_went_for_itself_alone(model: Model, whose: str, is_told: bool) -> None:
    served = Reported(model)
    served.run(tokens(100), tenant="a")
    for number in range(6):
        served.run(tokens(100, seed=50 + number), tenant=whose)
    report = served.report(tokens(100), tenant="a")
    assert (report.cause, report.missed_tokens >= 96) == (MissCause.EVICTED, True)
    told = [each is not None for each in (report.gone_at, report.gone_for, report.policy)]
    assert told == [is_told] * 3
    assert served.engine.lookups.all()[-1].report.gone_at is not None


def test_what_lay_unused_for_too_long_is_expired(model: Model) -> None:
    served = Reported(model, prefix_cache_ttl_seconds=60)
    served.run(tokens(100))
    served.now += 120
    assert served.report(tokens(100)).cause is MissCause.TTL_EXPIRED


@pytest.mark.parametrize(
    ("options", "request_options", "cause"),
    [
        ({"enable_prefix_caching": False}, {}, MissCause.DISABLED),
        ({}, {"params": {"prompt_logprobs": 1}}, MissCause.PROMPT_LOGPROBS),
        ({}, {"cache_salt": "pepper"}, MissCause.NEVER_SEEN),
        ({"miss_memory_bytes": 0}, {"cache_salt": "pepper"}, MissCause.UNKNOWN),
        ({"miss_memory_bytes": 0}, {}, MissCause.NONE),
    ],
)
def test_what_was_asked_for_is_a_cause(model: Model, options: dict, request_options: dict, cause: MissCause) -> None:
    served = Reported(model, **options)
    served.run(tokens(100))
    report = served.report(tokens(100), **request_options)
    assert report.cause is cause
    assert report.written_tokens == (0 if cause is MissCause.DISABLED else report.uncached_tokens)


def test_states_that_are_missing_are_told_from_pages_that_are() -> None:
    served = Reported(Model.from_transformers(build_tiny("qwen3_next")), nbytes=1 << 21, snapshot_interval_tokens=0)
    asked = [64 + token % 64 for token in tokens(100)]
    served.run(asked)
    report = served.report([*asked[:90], 70, 71])
    assert report.known_tokens == 90
    assert report.num_read_tokens < 45
    assert (report.cause, report.missed_tokens) == (
        MissCause.CHECKPOINT_MISSING,
        report.known_tokens - report.num_read_tokens,
    )


def test_memory_is_bounded_however_much_is_served(model: Model) -> None:
    served = Reported(model, miss_memory_bytes=64 << 10)
    for number in range(80):
        served.run(tokens(90, seed=number))
        assert served.engine.lookups.nbytes <= 64 << 10
    assert 1 < len(served.engine.lookups.all()) < 80
    assert served.engine.lookups.all()[-1].request_id == "r79"


def test_without_memory_nothing_is_remembered(model: Model) -> None:
    served = Reported(model, miss_memory_bytes=0)
    served.run(tokens(90))
    assert (served.engine.lookups.nbytes, served.engine.lookups.all()) == (0, [])
    with pytest.raises(ConfigError, match="miss_memory_bytes"):
        EngineConfig(miss_memory_bytes=-1)


def test_every_output_has_its_report(model: Model) -> None:
    with LLM(model, kv_cache_memory_bytes=NUM_PAGES * PAGE_NBYTES, num_threads=1) as llm:
        params = SamplingParams(max_tokens=2, n=2, temperature=1.0)
        for read in (0, 49):
            report = llm.generate(tokens(50), params, use_tqdm=False)[0].cache_report
            assert (report.prompt_tokens, report.num_read_tokens) == (50, read)
        chunks = list(llm.stream(tokens(50)))
        assert chunks[-1].output is not None
        assert chunks[-1].output.cache_report.cause is MissCause.NONE
