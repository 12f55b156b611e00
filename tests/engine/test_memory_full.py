"""What becomes of running sequences when pages are short: they wait, go down to tiers, end, or go on with less."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MptConfig

from engine.tiny import VOCABULARY, make_engine, make_llm, tiny_model, windowed_model
from pagoda import SamplingParams
from pagoda.cache.compression.choice import MemoryFull
from pagoda.cache.leases import Breakpoint
from pagoda.cache.prefix.held import Reason
from pagoda.config import TenantShare
from pagoda.engine.engine import Engine
from pagoda.engine.request import FinishReason, Phase, Request, new_request
from pagoda.errors import ConfigError, InvalidSamplingError, MemoryFullError, OutOfPagesError
from pagoda.models.loader import Model, model_from_config
from pagoda.request_time import time_of

# No token twice: keys of the first layer would be equally long but for rounding.
PROMPTS = [random.Random(seed).sample(range(VOCABULARY), k=20) for seed in range(8)]
NEW_TOKENS = 100
# The same bits alone and beside others: a score that is rounded otherwise may keep another token.
EXACT = {"deterministic": True}
ONCE = (
    "snapkv:tokens=40,window=8,kernel=3",
    "knorm:tokens=40",
    "random:tokens=40",
    "snapkv:tokens=48,window=8,head_floor=0.2",
)
AGAIN = ("tova:tokens=40,every=16", "morphkv:tokens=40,window=8,every=16", "snapkv:tokens=40,window=20,every=8")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def alone(model: Model) -> list[list[int]]:
    with make_llm(model, **EXACT) as llm:
        return [llm.generate([each], asking(None))[0].outputs[0].token_ids for each in PROMPTS]


def asking(memory_full: str | None, **more: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": NEW_TOKENS, "memory_full": memory_full, **more})


def engine_of(model: Model, num_pages: int, **options: Any) -> Engine:
    page_nbytes = make_engine(model).memory.geometries[0].page_nbytes
    return make_engine(model, **{"kv_cache_memory_bytes": num_pages * page_nbytes, **EXACT, **options})


def run(engine: Engine, asked: list[SamplingParams], prompts: list[list[int]] = PROMPTS) -> list[Request]:
    """All of them at once; each ends once, and the books are right at every step."""
    requests = [
        new_request(str(number), prompt, params)
        for number, (prompt, params) in enumerate(zip(prompts, asked, strict=False))
    ]
    for each in requests:
        engine.add(each)
    ended: list[str] = []
    for _ in range(3000):
        told = {event.sequence.request for event in engine.step()}
        ended += [each.request_id for each in told if each.is_finished]
        engine.inspector.check_integrity()
        if not engine.has_work:
            break
    assert sorted(ended) == sorted(each.request_id for each in requests)
    assert all(counts.free + counts.idle == counts.total for counts in engine.inspector.stats().groups)
    return requests


def preemptions(requests: list[Request]) -> int:
    return sum(each.metrics.num_preemptions for each in requests)


def test_who_says_reject_ends_instead_of_waiting(model: Model, alone: list[list[int]]) -> None:
    """Nobody does while there are pages; when there are none the youngest end, and the others go on."""
    roomy = run(engine_of(model, 100), [asking("reject")] * 8)
    assert [each.sequences[0].output_tokens for each in roomy] == alone
    requests = run(engine_of(model, 32, memory_full="reject"), [asking(None)] * 8)
    ends = [each.sequences[0].finish_reason for each in requests]
    assert ends == [FinishReason.LENGTH] * 4 + [FinishReason.ERROR] * 4
    assert [each.sequences[0].output_tokens for each in requests[:4]] == alone[:4]
    assert preemptions(requests) == 0
    assert all(isinstance(each.error, MemoryFullError) for each in requests[4:])
    assert all(each.metrics.gave_way == {MemoryFull.REJECT: 1} for each in requests[4:])


def test_pages_of_who_is_rejected_are_still_hit(model: Model, alone: list[list[int]]) -> None:
    engine = engine_of(model, 32)
    *_, last = run(engine, [asking("preempt")] * 7 + [asking("reject")])
    assert isinstance(last.error, MemoryFullError)
    known = last.sequences[0].tokens.tolist()
    assert known[len(PROMPTS[7]) :] == alone[7][: len(known) - len(PROMPTS[7])]
    engine = engine_of(model, 100)
    run(engine, [asking("reject")])
    [again] = run(engine, [asking(None, max_tokens=1)], [[*PROMPTS[0], *alone[0]]])
    assert again.num_cached_tokens == len(PROMPTS[0]) + NEW_TOKENS - 1


def test_all_samples_of_a_request_end_with_one(model: Model) -> None:
    requests = run(engine_of(model, 32), [asking("preempt")] * 4 + [asking("reject", n=4)])
    assert isinstance(requests[4].error, MemoryFullError)
    assert len(requests[4].sequences) == 4
    assert all(each.finish_reason is FinishReason.LENGTH for each in requests[3].sequences)


def test_the_caller_is_told(model: Model) -> None:
    page_nbytes = make_engine(model).memory.geometries[0].page_nbytes
    with (
        make_llm(model, kv_cache_memory_bytes=32 * page_nbytes, memory_full="reject") as llm,
        pytest.raises(MemoryFullError, match="send it again later"),
    ):
        llm.generate(PROMPTS, asking(None))


def after_compression(model: Model, policy: str, request: Request) -> list[int]:
    """What follows what a sequence had when it was compressed, if that is a prompt."""
    sequence = request.sequences[0]
    assert sequence.compression is not None
    assert sequence.compression.num_exact_tokens is not None
    tokens, length = sequence.tokens.tolist(), sequence.compression.num_exact_tokens
    with make_llm(model, **EXACT) as llm:
        params = SamplingParams(temperature=0, max_tokens=len(tokens) - length, kv_compression=policy)
        return [*tokens[:length], *llm.generate([tokens[:length]], params)[0].outputs[0].token_ids]


@pytest.mark.parametrize("policy", [*ONCE, *AGAIN])
def test_who_is_compressed_goes_on_as_if_that_were_its_prompt(
    model: Model, alone: list[list[int]], policy: str
) -> None:
    requests = run(engine_of(model, 32, memory_full=policy), [asking(None)] * 8)
    compressed = [pair for pair in zip(requests, alone, strict=True) if pair[0].metrics.gave_way]
    assert len(compressed) >= 6
    for request, exact in compressed:
        sequence = request.sequences[0]
        assert sequence.compression is not None
        assert sequence.compression.num_omitted_tokens > 0
        assert time_of(request).num_shrunk == 1
        assert sequence.tokens.tolist() == after_compression(model, policy, request)
        known = sequence.compression.num_exact_tokens - len(request.prompt) + 1
        assert sequence.output_tokens[:known] == exact[:known]
    assert any(each.sequences[0].output_tokens != exact for each, exact in compressed)


@pytest.mark.parametrize("policy", [*ONCE, *AGAIN])
def test_who_is_sent_back_all_the_same_is_compressed_where_it_was(model: Model, policy: str) -> None:
    """Older ones grow until there is no room for others even so."""
    requests = run(engine_of(model, 24), [asking("preempt")] * 3 + [asking(policy)] * 5)
    twice = [each for each in requests if each.metrics.num_preemptions and each.metrics.gave_way]
    assert twice
    for request in twice:
        assert request.sequences[0].tokens.tolist() == after_compression(model, policy, request)


def test_twice_as_many_run_without_being_sent_back(model: Model) -> None:
    prompts = [random.Random(seed).sample(range(VOCABULARY), k=20) for seed in range(12)]
    fitting = engine_of(model, 12 * 4)  # 12 sequences that hold up to 56 tokens, or 6 with all of their 120
    exact = run(fitting, [asking("preempt")] * 12, prompts)
    assert preemptions(exact) >= 6
    bounded = run(engine_of(model, 12 * 4), [asking(AGAIN[1])] * 12, prompts)
    assert preemptions(bounded) == 0


def test_nobody_is_compressed_while_there_are_pages(model: Model, alone: list[list[int]]) -> None:
    for policy in (ONCE[0], AGAIN[0]):
        requests = run(engine_of(model, 100, memory_full=policy), [asking(None)] * 8)
        assert [each.sequences[0].output_tokens for each in requests] == alone
        assert not any(each.metrics.gave_way for each in requests)


def test_nobody_is_compressed_for_pages_that_it_shares(model: Model) -> None:
    """What four samples share of a prompt would stay, and each would have its own beside."""
    prompt = random.Random(0).sample(range(VOCABULARY), k=160)
    engine = engine_of(model, 14, memory_full="knorm:tokens=100")
    [request] = run(engine, [asking(None, n=4, max_tokens=30)], [prompt])
    assert request.metrics.gave_way == {}
    assert request.metrics.num_preemptions > 0


def test_a_policy_of_one_request_is_for_it_alone(model: Model, alone: list[list[int]]) -> None:
    asked = [asking(ONCE[0]) if number % 2 else asking("preempt") for number in range(8)]
    requests = run(engine_of(model, 32), asked)
    for number, request in enumerate(requests):
        if number % 2 == 0:
            assert request.sequences[0].output_tokens == alone[number]
    assert any(each.metrics.gave_way for each in requests[1::2])


def test_a_cached_prompt_is_computed_as_far_as_queries_are_needed(model: Model) -> None:
    engine = engine_of(model, 100)
    prompt = random.Random(0).sample(range(VOCABULARY), k=100)
    for memory_full, cached in (("preempt", None), ("preempt", 99), (ONCE[0], 92), ("knorm:tokens=40", 99)):
        [request] = run(engine, [asking(memory_full, max_tokens=2)], [prompt])
        assert request.num_cached_tokens == (cached or 0)


def test_windows_beside_are_left_as_they_are() -> None:
    model, policy = windowed_model("float32"), ONCE[0]
    for memory_full in ("preempt", policy):
        engine = make_engine(model, kv_cache_memory_bytes=220_000, max_model_len=256)
        requests = run(engine, [asking(memory_full)] * 8)
        assert all(each.sequences[0].finish_reason is FinishReason.LENGTH for each in requests)
        if memory_full == policy:
            compressed = [each for each in requests if each.metrics.gave_way]
            assert compressed
            for each in compressed:
                assert each.sequences[0].tokens.tolist() == after_compression(model, policy, each)
        else:
            assert preemptions(requests) > 0


@pytest.mark.parametrize("memory_full", ["preempt", "reject", "morphkv:tokens=40,window=8,every=16"])
def test_a_tenant_beyond_its_share_gives_way_as_its_requests_say(model: Model, memory_full: str) -> None:
    """Another one waits for pages, of which these have more than their part."""
    engine = engine_of(model, 32, tenants={"late": TenantShare(0.1)})
    early = [new_request(str(number), each, asking(memory_full)) for number, each in enumerate(PROMPTS[:4])]
    for each in early:
        engine.add(each)
    while len(early[0].sequences[0].tokens) < 100:
        engine.step()
    assert not any(each.metrics.gave_way or each.metrics.num_preemptions for each in early)
    late = new_request("late", random.Random(0).sample(range(VOCABULARY), k=100), asking(None), tenant="late")
    engine.add(late)
    engine.step()
    engine.inspector.check_integrity()
    assert late.sequences[0].phase is Phase.RUNNING
    if memory_full == "preempt":
        assert preemptions(early) > 0
    else:
        assert preemptions(early) == 0
        assert early[3].metrics.gave_way.total() == 1
    assert isinstance(early[3].error, MemoryFullError) == (memory_full == "reject")
    while engine.has_work:
        engine.step()
    assert late.sequences[0].num_output_tokens == NEW_TOKENS


@pytest.mark.parametrize("error", [OutOfPagesError("no room"), ValueError("broken")])
def test_a_compression_that_fails_is_nobody_elses_matter(
    model: Model, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Without room it waits and is compressed when it has come there again; what else goes wrong ends it."""
    engine = engine_of(model, 32)
    failing, compress = [error], engine._cache.compact

    def fail_once(*arguments: Any) -> None:
        if failing:
            raise failing.pop()
        compress(*arguments)

    monkeypatch.setattr(engine._cache, "compact", fail_once)
    requests = run(engine, [asking("preempt")] * 7 + [asking("knorm:tokens=40")])
    assert not failing
    assert [each.sequences[0].output_tokens for each in requests[:7]] == alone[:7]
    if isinstance(error, OutOfPagesError):
        assert requests[7].sequences[0].tokens.tolist() == after_compression(model, "knorm:tokens=40", requests[7])
    else:
        assert "broken" in str(requests[7].error)


@pytest.mark.parametrize("memory_full", ["preempt", "demote"])
def test_who_is_demoted_is_loaded_again(model: Model, alone: list[list[int]], tmp_path: Path, memory_full: str) -> None:
    """Nothing of it was hit before, so without that no tier would take it."""
    engine = engine_of(model, 32, kv_disk=str(tmp_path), kv_write="second-hit")
    assert engine.residency is not None
    requests = [new_request(str(number), each, asking(memory_full)) for number, each in enumerate(PROMPTS)]
    for each in requests:
        engine.add(each)
    while not preemptions(requests):
        engine.step()
    engine.residency.flush()
    sent_back, *_ = [each for each in requests if each.metrics.num_preemptions]
    stored = engine.residency.num_stored(sent_back.namespace, sent_back.sequences[0].tokens)
    if memory_full == "preempt":
        assert stored == 0
    else:
        assert stored == len(sent_back.sequences[0].tokens) - 1
        assert sent_back.metrics.gave_way == {MemoryFull.DEMOTE: 1}
    for group in engine._cache.groups:
        group.holdings.evict_all(Reason.ROOM)
    while engine.has_work:
        engine.step()
        engine.inspector.check_integrity()
    assert [each.sequences[0].output_tokens for each in requests] == alone
    [tier] = engine.residency.report()
    assert (tier.num_loaded > 0) == (memory_full == "demote")
    engine.close()


ACTIONS = ("preempt", "demote", "reject", *ONCE[:2], *AGAIN[:2])


@settings(max_examples=12)
@given(
    num_pages=st.integers(9, 40),
    mixture=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 7)), min_size=1, max_size=10),
)
def test_everybody_ends_once_whatever_is_mixed(
    model: Model, alone: list[list[int]], num_pages: int, mixture: list[tuple[str, int]]
) -> None:
    engine = engine_of(model, num_pages, kv_host_bytes=1 << 20)
    requests = run(engine, [asking(action) for action, _ in mixture], [PROMPTS[number] for _, number in mixture])
    for request, (action, number) in zip(requests, mixture, strict=True):
        [sequence] = request.sequences
        if action == "reject" and request.error is not None:
            assert isinstance(request.error, MemoryFullError)
            assert sequence.output_tokens == alone[number][: sequence.num_output_tokens]
            continue
        assert sequence.finish_reason is FinishReason.LENGTH
        assert len(sequence.output_tokens) == NEW_TOKENS
        if not request.metrics.gave_way[MemoryFull.COMPRESS]:
            assert sequence.output_tokens == alone[number]
    engine.close()


def test_what_cannot_be_is_refused_with_what_can(model: Model) -> None:
    for said, options in (
        ("memory_full is 'nothing'; give preempt, demote, reject, or a policy", {"memory_full": "nothing"}),
        ("no tiers for pages: give kv_host_bytes, kv_disk or kv_remote", {"memory_full": "demote"}),
        ("memory_full does not go with kv_compression", {"memory_full": ONCE[0], "kv_compression": ONCE[1]}),
        ("context_full does not go with memory_full", {"memory_full": ONCE[0], "context_full": "truncate_oldest"}),
        ("leave out after", {"memory_full": f"{ONCE[0]},after=30"}),
        ("streaming keeps whole pages, so it cannot begin", {"memory_full": "streaming:tokens=64"}),
        ("h2o needs the queries of all tokens", {"memory_full": "h2o:tokens=64"}),
        ("kvzip has the prompt repeated, which takes pages", {"memory_full": "kvzip:tokens=64"}),
        ("context_full is 'kvzip:tokens=64'; give stop, truncate_oldest, or st", {"context_full": "kvzip:tokens=64"}),
        ("memory_full is 'snapkv': snapkv needs a budget", {"memory_full": "snapkv"}),
    ):
        with pytest.raises(ConfigError, match=said):
            make_llm(model, **options)
        with make_llm(model) as llm, pytest.raises(InvalidSamplingError, match=said):
            llm.generate([PROMPTS[0]], SamplingParams(**options))
    engine = make_engine(model)
    for asked, leases, said in (
        (asking(ONCE[0], prompt_logprobs=1), (), "memory_full does not go with prompt_logprobs"),
        (asking(ONCE[0]), (Breakpoint(10, 60.0),), "memory_full does not go with leases"),
    ):
        with pytest.raises(InvalidSamplingError, match=said):
            engine.add(new_request("refused", PROMPTS[0], asked, breakpoints=leases))
    with pytest.raises(InvalidSamplingError, match="memory_full"):
        asking(3)  # type: ignore[arg-type]
    alibi = MptConfig(vocab_size=VOCABULARY, d_model=64, n_heads=4, n_layers=2, max_seq_len=512)
    with pytest.raises(ConfigError, match="positions"):
        make_llm(model_from_config(alibi, dtype="float32", seed=0), memory_full=ONCE[0])


def test_what_was_set_for_all_spares_who_says_something_else(model: Model) -> None:
    engine = engine_of(model, 100, memory_full=ONCE[0])
    for asked, plan in (
        (asking(None), "when_short"),
        (asking(None, kv_compression="none"), "when_short"),
        (asking("reject"), None),
        (asking(None, kv_compression=ONCE[1]), "now"),
        (asking(None, context_full="stop"), None),
        (asking(None, prompt_logprobs=1), None),
    ):
        [request] = run(engine, [asked], [PROMPTS[0][:10]])
        found = request.compression
        assert plan == (None if found is None else "when_short" if found.when_short else "now")
