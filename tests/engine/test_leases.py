"""Leases, tenants and prompts that are only computed, through the engine on tiny models."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig

from oracle.families import build_tiny
from pagoda import LLM, FinishReason, SamplingParams
from pagoda.cache.leases import Breakpoint
from pagoda.cache.prefix.held import Reason
from pagoda.collector import Collector
from pagoda.config import EngineConfig, TenantShare
from pagoda.engine.engine import Engine
from pagoda.engine.request import Request, new_request
from pagoda.errors import BreakpointError, ConfigError, PromptTooLongError
from pagoda.kernels.dispatch import choose_kernels
from pagoda.models.build import random_network
from pagoda.models.loader import model_from_config
from pagoda.models.model import Model
from pagoda.outputs import RequestOutput

PAGE_TOKENS = 16
SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
PAGE_NBYTES = 2 * 2 * 2 * 16 * 4 * PAGE_TOKENS  # planes x layers x KV heads x width x fp32 x tokens
DAY = 86400.0


@pytest.fixture(scope="module")
def model() -> Model:
    return model_from_config(LlamaConfig(num_hidden_layers=2, **SIZES), dtype="float32", seed=0)


@pytest.fixture(scope="module", params=["windows", "lfm2", "qwen3_next"])
def mixed(request: pytest.FixtureRequest) -> Model:
    """Layers that do not keep all, beside some that do."""
    if request.param == "windows":
        layers = ["sliding_attention", "full_attention"]
        config = Gemma3TextConfig(num_hidden_layers=2, sliding_window=40, layer_types=layers, **SIZES)
        return Model.from_transformers(random_network(config, "eager"))
    return Model.from_transformers(build_tiny(request.param))


class Served:
    """An engine whose clock stands still, and the requests it has served."""

    def __init__(self, model: Model, nbytes: int, **options: Any) -> None:
        options = {"block_size": PAGE_TOKENS, "max_num_batched_tokens": 48, "max_num_seqs": 4, **options}
        config = EngineConfig(kv_cache_memory_bytes=nbytes, **options)
        self.now = 0.0
        self.engine = Engine(model, choose_kernels(config.environment), config, clock=lambda: self.now)
        self._ids = count()

    def run(self, prompt: list[int], max_tokens: int = 4, **options: Any) -> Request:
        return self.run_all([self.request(prompt, max_tokens, **options)])[0]

    def request(self, prompt: list[int], max_tokens: int, **options: Any) -> Request:
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        return new_request(str(next(self._ids)), prompt, params, **options)

    def run_all(self, requests: list[Request]) -> list[Request]:
        for request in requests:
            self.engine.add(request)
        while self.engine.has_work:
            self.engine.step()
        self.engine.inspector.check_integrity()
        return requests

    def flood(self, num_prompts: int = 12, **options: Any) -> None:
        for seed in range(num_prompts):
            self.run(prompt(100, seed=1000 + seed), **options)

    @property
    def num_evicted(self) -> int:
        return self.engine.inspector.stats().evicted_pages


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(64, 128, (length,), generator=generator).tolist()


def breakpoints(*cuts: int, ttl: float = 300.0) -> tuple[Breakpoint, ...]:
    return tuple(Breakpoint(cut, ttl) for cut in cuts)


@pytest.mark.parametrize("length", [15, 16, 17, 90])
def test_a_leased_prompt_survives_a_flood_to_the_token_and_no_longer_than_its_time(model: Model, length: int) -> None:
    served = Served(model, 16 * PAGE_NBYTES)
    first = served.run(prompt(length), breakpoints=breakpoints(length))
    served.flood()
    assert served.num_evicted > 16
    again = served.run([*prompt(length), 5])
    assert again.num_cached_tokens == length
    assert [result.granted for result in first.lease_results] == [True]
    assert served.run(prompt(length)).sequences[0].output_tokens == first.sequences[0].output_tokens
    served.now = 299.9
    assert [info.num_tokens for info in served.engine.inspector.leases()] == [length]
    served.flood()
    assert served.run([*prompt(length), 5]).num_cached_tokens == length
    served.now += 300.0
    served.flood()
    assert served.run([*prompt(length), 5]).num_cached_tokens == 0


@pytest.mark.parametrize("cut", [33, 64, 70])
def test_a_breakpoint_inside_a_prompt_is_kept_to_the_token(mixed: Model, cut: int) -> None:
    """Behind windows and between recurrent states as well: each is kept where others will resume."""
    served = Served(mixed, 1 << 18, snapshot_memory_share=0.3, max_num_seqs=2)
    asked = prompt(120)
    first = served.run(asked, breakpoints=breakpoints(cut))
    assert first.lease_results[0].granted
    for seed in range(1000, 2000):
        served.run(prompt(100, seed), max_tokens=2)
        evicted = [group.holdings.num_evicted(Reason.ROOM) for group in served.engine._cache.groups]
        if min(evicted) >= 20:  # what was used first goes first, and is well among these
            break
    assert served.run([*asked[:cut], 5, 6, 7]).num_cached_tokens == cut
    assert served.engine.inspector.leases()[0].num_hits == 1
    served.now = 300.0
    assert served.engine.inspector.leases() == []


def test_leases_say_what_they_hold(model: Model) -> None:
    served = Served(model, 64 * PAGE_NBYTES)
    first = served.run(prompt(100), breakpoints=(Breakpoint(20, 60.0), Breakpoint(90, 3600.0)))
    assert [(r.granted, r.num_tokens, r.num_new_tokens, r.expires_at) for r in first.lease_results] == [
        (True, 20, 20, 60.0),
        (True, 90, 70, 3600.0),
    ]
    assert [result.new_nbytes // PAGE_NBYTES for result in first.lease_results] == [2, 4]
    served.now = 10.0
    again = served.run([*prompt(90), 5], breakpoints=breakpoints(91))
    assert (again.lease_results[0].num_new_tokens, again.lease_results[0].new_nbytes) == (1, PAGE_NBYTES)
    infos = {info.num_tokens: info for info in served.engine.inspector.leases()}
    assert infos[90].nbytes == 6 * PAGE_NBYTES
    assert (infos[90].num_hits, infos[90].expires_in_seconds, infos[90].age_seconds) == (1, 3600.0, 10.0)
    assert infos[20].expires_in_seconds == 60.0
    stats = served.engine.inspector.stats()
    assert (stats.num_leases, stats.groups[0].leased) == (3, 7)
    assert served.engine.reset_prefix_cache() > 0
    assert (served.engine.inspector.leases(), served.engine.inspector.stats().groups[0].idle) == ([], 0)


def test_a_lease_beyond_the_budget_is_not_granted(model: Model) -> None:
    served = Served(model, 16 * PAGE_NBYTES)
    first = served.run(prompt(150), breakpoints=breakpoints(128, 129))
    assert [result.granted for result in first.lease_results] == [True, False]
    assert [info.num_tokens for info in served.engine.inspector.leases()] == [128]


def test_leases_give_way_to_a_long_prompt_of_their_own_tenant(model: Model) -> None:
    served = Served(model, 16 * PAGE_NBYTES)
    served.run(prompt(120), breakpoints=breakpoints(120))
    long = served.run(prompt(240, seed=1), max_tokens=16)
    assert (long.error, long.sequences[0].num_output_tokens) == (None, 16)
    assert (served.engine.inspector.stats().revoked_leases, served.engine.inspector.leases()) == (1, [])


@pytest.mark.parametrize("length", [1, 16, 40])
def test_max_tokens_0_computes_a_prompt_and_keeps_it(model: Model, length: int) -> None:
    served = Served(model, 16 * PAGE_NBYTES)
    warmed = served.run(prompt(length), max_tokens=0, breakpoints=breakpoints(length, ttl=DAY))
    assert [(each.output_tokens, each.finish_reason) for each in warmed.sequences] == [([], FinishReason.LENGTH)]
    served.flood()
    asked = served.run([*prompt(length), 5])
    assert (asked.num_cached_tokens, asked.metrics.num_computed_tokens) == (length, 1 + 3)


def test_max_tokens_0_leaves_a_state_to_go_on_from(mixed: Model) -> None:
    served = Served(mixed, 1 << 22)
    served.run(prompt(40), max_tokens=0)
    assert served.run([*prompt(40), 5]).num_cached_tokens == 40


def test_max_tokens_0_gives_empty_samples(model: Model) -> None:
    with LLM(model, num_threads=1, kv_cache_memory_bytes=64 * PAGE_NBYTES, block_size=16) as llm:
        output = llm.generate([prompt(20)], SamplingParams(max_tokens=0, n=2))[0]
        assert [(each.text, each.token_ids, each.finish_reason) for each in output.outputs] == [
            ("", [], FinishReason.LENGTH)
        ] * 2
        longest = prompt(llm.engine.max_model_len, seed=1)
        assert llm.generate([longest], SamplingParams(max_tokens=0))[0].outputs[0].token_ids == []
        with pytest.raises(PromptTooLongError):
            llm.generate([longest], SamplingParams(max_tokens=1))
        llm.check_integrity()


def test_outputs_tell_of_leases(model: Model) -> None:
    served, outputs = Served(model, 64 * PAGE_NBYTES), []
    request = served.request(prompt(40), 2, breakpoints=breakpoints(30))
    collect = Collector(request, None, on_end=outputs.append)
    served.engine.add(request)
    while served.engine.has_work:
        for event in served.engine.step():
            collect(event, request.is_finished)
    output = outputs[0]
    assert isinstance(output, RequestOutput)
    assert [(result.granted, result.num_tokens) for result in output.leases] == [(True, 30)]


@pytest.mark.parametrize(
    "wishes",
    [
        breakpoints(21),
        breakpoints(0),
        breakpoints(5, 5),
        breakpoints(9, 5),
        breakpoints(5, ttl=0.0),
        breakpoints(5, ttl=float("nan")),
        breakpoints(5, ttl=float("inf")),
    ],
)
def test_impossible_breakpoints_are_refused(model: Model, wishes: tuple[Breakpoint, ...]) -> None:
    served = Served(model, 16 * PAGE_NBYTES)
    with pytest.raises(BreakpointError):
        served.run(prompt(20), breakpoints=wishes)
    assert not served.engine.has_work


def test_without_prefix_caching_no_lease_is_granted(model: Model) -> None:
    served = Served(model, 16 * PAGE_NBYTES, enable_prefix_caching=False)
    assert [result.granted for result in served.run(prompt(20), breakpoints=breakpoints(20)).lease_results] == [False]


TENANTS = {"small": TenantShare(page_quota=0.25), "large": TenantShare(page_quota=0.25, lease_budget=0.5)}


def test_a_tenant_keeps_its_share_whatever_others_ask(model: Model) -> None:
    served = Served(model, 32 * PAGE_NBYTES, tenants=TENANTS)
    served.run(prompt(120), tenant="small")
    for tenant in ("", "large"):
        served.flood(tenant=tenant)
    assert served.num_evicted > 32
    assert served.run([*prompt(120), 5], tenant="small").num_cached_tokens == 120
    assert served.run([*prompt(120), 5]).num_cached_tokens == 0


def test_sequences_end_where_the_pages_of_others_begin(model: Model) -> None:
    served = Served(model, 32 * PAGE_NBYTES, tenants=TENANTS)
    lengths = {tenant: served.engine.max_len(tenant) for tenant in ("", "small", "large", "unknown")}
    assert lengths == {"": 8 * 16, "small": 16 * 16, "large": 24 * 16, "unknown": 8 * 16}
    for tenant, length in lengths.items():
        requests = [served.request(prompt(40, seed), 500, tenant=tenant) for seed in range(2)]
        for request in served.run_all(requests):
            assert request.sequences[0].finish_reason is FinishReason.LENGTH
            assert len(request.sequences[0].tokens) == length
        with pytest.raises(PromptTooLongError, match="other tenants"):
            served.run(prompt(length), tenant=tenant)
        served.run(prompt(length), max_tokens=0, tenant=tenant)


def test_tenants_side_by_side_give_the_tokens_they_give_alone(model: Model) -> None:
    prompts = [prompt(30 + seed, seed) for seed in range(9)]
    tenants = [("", "small", "large")[index % 3] for index in range(9)]
    roomy, tight = Served(model, 512 * PAGE_NBYTES), Served(model, 24 * PAGE_NBYTES, tenants=TENANTS, max_num_seqs=9)
    requests = [
        tight.request(each, 40, tenant=tenant, breakpoints=breakpoints(20))
        for each, tenant in zip(prompts, tenants, strict=True)
    ]
    together = [request.sequences[0].output_tokens for request in tight.run_all(requests)]
    assert sum(request.metrics.num_preemptions for request in requests) > 0
    assert together == [roomy.run(each, 40).sequences[0].output_tokens for each in prompts]


def test_a_tenant_grows_into_its_share_over_its_own_idle_pages(model: Model) -> None:
    """While free pages are handed out its idle ones are within its share, and after that they are not."""
    served = Served(model, 10 * PAGE_NBYTES, tenants={"own": TenantShare(page_quota=0.5)}, max_num_batched_tokens=128)
    served.run(prompt(60, 1), tenant="own")
    other = served.request(prompt(40, 2), 30)
    served.engine.add(other)
    for _ in range(4):
        served.engine.step()
    late = served.request(prompt(70, 3), 4, tenant="own")
    served.run_all([late])
    assert [request.sequences[0].num_output_tokens for request in (other, late)] == [30, 4]


def test_the_longest_request_starts_beside_those_that_grow_into_their_own_share(model: Model) -> None:
    served = Served(model, 32 * PAGE_NBYTES, tenants={"own": TenantShare(page_quota=0.5)})
    longest = served.request(prompt(served.engine.max_len() - 1), 1)
    beside = served.request(prompt(20), 100, tenant="own")
    served.engine.add(beside)
    served.engine.step()
    served.engine.add(longest)
    while longest.metrics.first_scheduled is None:
        assert not beside.is_finished
        served.engine.step()
    served.run_all([])
    assert [request.metrics.num_preemptions for request in (longest, beside)] == [0, 0]


def test_tenants_cannot_reserve_more_than_there_is() -> None:
    with pytest.raises(ConfigError, match=r"1\.1"):
        EngineConfig(tenants={"a": TenantShare(0.5, 0.6), "b": TenantShare(0.5)})
    with pytest.raises(ConfigError, match="page_quota"):
        TenantShare(page_quota=1.5)
    with pytest.raises(ConfigError, match="lease_budget"):
        TenantShare(lease_budget=-0.1)
