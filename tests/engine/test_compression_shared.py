"""What prefixes were compressed to is found by others, who answer as if each had compressed its own."""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine.test_compression import FORMATS, NEW_TOKENS, page_nbytes, params
from engine.tiny import PAGE_TOKENS, VOCABULARY, make_engine, make_llm, tiny_model, windowed_model
from oracle.families import build_tiny
from pagoda.cache.compression.choice import policy_of
from pagoda.cache.leases import Breakpoint
from pagoda.cache.report import MissCause
from pagoda.config import TenantShare
from pagoda.engine.engine import Engine
from pagoda.engine.request import Request, new_request
from pagoda.models.loader import Model
from pagoda.outputs import RequestOutput

PREFIX = random.Random(0).sample(range(VOCABULARY), k=120)
QUESTIONS = [[*PREFIX, *random.Random(1 + seed).choices(range(VOCABULARY), k=9)] for seed in range(3)]
# Of 120 tokens, or of 100 of them; some end within a page, some give heads other numbers of pages.
SHARED = (
    "snapkv:tokens=40,window=8,after=120",
    "pyramidkv:tokens=40,window=8,head_floor=0.2,after=120",
    "tova:tokens=40,every=0,critical=0.5,after=100",
    "morphkv:tokens=48,window=8,every=0,after=120",
    "expected_attention:share=0.4,after=120",
    "h2o:tokens=40,every=0,after=100",
    "knorm:tokens=33,head_floor=0.1,after=120",
    "random:tokens=7,after=120",
    "kvzip:share=0.3,chunk=48,after=120",
)
# How others than the third of the first one would keep something else.
OTHERWISE = (
    "snapkv:tokens=41,window=8,after=120",
    "snapkv:tokens=40,window=9,after=120",
    "snapkv:tokens=40,window=8,after=119",
    "snapkv:tokens=40,window=8,critical=0.5,after=120",
    "snapkv:tokens=40,window=8,head_floor=0.2,after=120",
    "morphkv:tokens=40,window=8,every=0,after=120",
)
OWN = (
    "snapkv:tokens=40,window=8",  # the question is a part of it
    "tova:tokens=40,every=3,after=120",
    "streaming:tokens=40,every=16",
    "kvzip:tokens=120,after=120",  # all is kept
)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def after_of(policy: str) -> int:
    parsed = policy_of(policy)
    assert parsed is not None
    assert parsed.after is not None
    return parsed.after


def answers(outputs: list[RequestOutput]) -> list[tuple[list[int], list[float]]]:
    """Tokens and their log-probabilities."""
    samples = [each.outputs[0] for each in outputs]
    return [(each.token_ids, [one.logprob for one in each.logprobs]) for each in samples]


def run(engine: Engine, requests: list[Request]) -> list[list[int]]:
    """The answers to all, who come at once."""
    for each in requests:
        engine.add(each)
    while engine.has_work:
        engine.step()
        engine.inspector.check_integrity()
    assert not any(each.error for each in requests)
    return [each.output_tokens for request in requests for each in request.sequences]


def asked(prompts: list[list[int]], policy: str | None, name: str = "", **more: Any) -> list[Request]:
    options = {key: more.pop(key) for key in ("cache_salt", "tenant", "breakpoints") if key in more}
    return [new_request(f"{name}{i}", each, params(policy, **more), **options) for i, each in enumerate(prompts)]


def num_cached(requests: list[Request]) -> list[int | None]:
    return [each.num_cached_tokens for each in requests]


@pytest.mark.parametrize("policy", SHARED)
def test_questions_on_one_prefix_have_it_computed_and_compressed_once(model: Model, policy: str) -> None:
    """To the bit as if each had done it by itself, whether they come one by one, together, or in chunks."""
    after = after_of(policy)
    with make_llm(model, deterministic=True, enable_prefix_caching=False) as llm:
        alone = answers(llm.generate(QUESTIONS, params(policy, logprobs=0)))
    with make_llm(model, deterministic=True) as llm:
        outputs = [llm.generate([each], params(policy, logprobs=0))[0] for each in QUESTIONS]
        assert answers(outputs) == alone, "one by one"
        assert [each.num_cached_tokens for each in outputs] == [0, after, after]
        later = len(QUESTIONS[0]) - after + NEW_TOKENS - 1
        assert [each.metrics.num_computed_tokens for each in outputs[1:]] == [later, later]
        assert {each.outputs[0].num_omitted_tokens for each in outputs} == {outputs[0].outputs[0].num_omitted_tokens}
        assert outputs[0].outputs[0].num_omitted_tokens > 0
        assert llm.cache_stats().compacted_hits == 2
    with make_llm(model, deterministic=True, max_num_batched_tokens=37, max_num_seqs=8) as llm:
        outputs = llm.generate(QUESTIONS, params(policy, logprobs=0))
        assert answers(outputs) == alone, "together"
        assert sorted(each.num_cached_tokens for each in outputs) == [0, after, after], "two have waited for the first"


@pytest.mark.parametrize("format", FORMATS)
def test_pages_of_every_format_are_read_as_they_are(model: Model, format: str) -> None:
    options = {"kv_cache_dtype": format, "kv_cache_calibration": "none", "deterministic": True}
    for policy in (SHARED[0], SHARED[1], SHARED[-1]):
        with make_llm(model, enable_prefix_caching=False, **options) as llm:
            alone = answers(llm.generate(QUESTIONS, params(policy, logprobs=0)))
        with make_llm(model, **options) as llm:
            assert answers(llm.generate(QUESTIONS, params(policy, logprobs=0))) == alone
            assert llm.cache_stats().compacted_hits == 2


def test_what_would_keep_something_else_is_another_prefix(model: Model) -> None:
    """So is another salt, another tenant, and a token that differs; the same budget in other words is not."""
    question = QUESTIONS[0]
    with make_llm(model) as llm:
        for policy in (SHARED[0], *OTHERWISE):
            llm.generate([question], params(policy))
        assert llm.cache_stats().compacted_hits == 0
        llm.generate([[*PREFIX[:50], 7, *question[51:]]], params(SHARED[0]))
        assert llm.cache_stats().compacted_hits == 0
        share = SHARED[0].replace("tokens=40", "share=0.34")
        [output] = llm.generate([QUESTIONS[1]], params(share))
        assert (output.num_cached_tokens, llm.cache_stats().compacted_hits) == (len(PREFIX), 1)
    engine = make_engine(model)
    for number, whose in enumerate(({}, {"cache_salt": "salt"}, {"tenant": "tenant"})):
        first, second = (asked([each], SHARED[0], f"{number}-", **whose) for each in QUESTIONS[:2])
        run(engine, first)
        assert num_cached(first) == [0]
        run(engine, second)
        assert num_cached(second) == [len(PREFIX)]


@pytest.mark.parametrize("policy", OWN)
def test_what_is_of_one_sequence_goes_with_it(model: Model, policy: str) -> None:
    with make_llm(model) as llm:
        for question in QUESTIONS:
            llm.generate([question], params(policy))
        stats = llm.cache_stats()
        assert (stats.compacted_pages, stats.compacted_hits) == (0, 0)


def test_who_is_compressed_when_pages_are_short_shares_nothing(model: Model) -> None:
    engine = make_engine(model, kv_cache_memory_bytes=20 * page_nbytes(model))
    requests = asked(QUESTIONS, None, memory_full="knorm:tokens=40", max_tokens=60)
    run(engine, requests)
    assert any(each.sequences[0].compression.num_omitted_tokens for each in requests), "as it is meant to be"
    assert engine.inspector.stats().compacted_pages == 0


def test_without_prefix_caching_nothing_is_kept_and_nobody_waits(model: Model) -> None:
    engine = make_engine(model, enable_prefix_caching=False, max_num_seqs=8)
    requests = asked(QUESTIONS, SHARED[-1])
    for each in requests:
        engine.add(each)
    engine.step()
    assert len(engine._scheduler.running) == len(QUESTIONS)
    run(engine, [])
    assert num_cached(requests) == [0, 0, 0]
    [counts] = engine.inspector.stats().groups
    assert counts.free == counts.total


def test_exact_pages_are_not_needed(model: Model) -> None:
    """They go first: what they were compressed to was used later."""
    engine = make_engine(model, kv_cache_memory_bytes=20 * page_nbytes(model))
    [alone] = run(make_engine(model), asked(QUESTIONS[1:2], SHARED[0]))
    run(engine, asked(QUESTIONS[:1], SHARED[0]))
    run(engine, asked([random.Random(9).choices(range(VOCABULARY), k=200)], None, max_tokens=1, name="other"))
    stats = engine.inspector.stats()
    assert (stats.compacted_pages, stats.evicted_pages > 0) == (3, True)
    exact = engine._cache.match(new_request("", PREFIX, params(None)).namespace, PREFIX, len(PREFIX)).num_tokens
    assert exact < len(PREFIX), "as it is meant to be"
    again = asked(QUESTIONS[1:2], SHARED[0], "again")
    assert run(engine, again) == [alone]
    assert num_cached(again) == [len(PREFIX)]
    report = again[0].cache_report
    assert report is not None
    assert (report.known_tokens, report.missed_tokens) == (len(PREFIX), 0)


def test_what_nobody_uses_makes_room(model: Model) -> None:
    """More prefixes than there is room for: each is computed, and the last ones are still there."""
    engine = make_engine(model, kv_cache_memory_bytes=16 * page_nbytes(model))
    prompts = [random.Random(seed).sample(range(VOCABULARY), k=129) for seed in range(12)]
    for policy in ("snapkv:tokens=100,window=8,after=120", "snapkv:tokens=100,window=8,head_floor=0.2,after=120"):
        for number, prompt in enumerate(prompts):
            run(engine, asked([prompt], policy, f"{policy}{number}-"))
        last = asked(prompts[-1:], policy, f"{policy}last")
        run(engine, last)
        assert num_cached(last) == [120]
        [counts] = engine.inspector.stats().groups
        assert counts.free + counts.idle == counts.total
        whole = asked([random.Random(99).choices(range(VOCABULARY), k=250)], None, f"{policy}whole", max_tokens=1)
        run(engine, whole)
        assert engine.inspector.stats().compacted_pages == 0, "a prompt that needs all pages has them"


def test_a_reset_forgets_what_nobody_uses(model: Model) -> None:
    engine = make_engine(model)
    run(engine, asked(QUESTIONS[:1], SHARED[0]))
    idle = engine.inspector.stats().groups[0].idle
    assert engine.inspector.stats().compacted_pages == 3
    assert engine.reset_prefix_cache() == idle
    assert engine.inspector.stats().compacted_pages == 0
    [request] = asked(QUESTIONS[1:2], SHARED[0], "after")
    engine.add(request)
    engine.step()
    engine.step()
    assert request.num_cached_tokens == 0
    engine.reset_prefix_cache()  # a last page of which all users have copies is nobody's
    engine.inspector.check_integrity()
    assert engine.inspector.stats().compacted_pages == 0
    run(engine, [])
    [counts] = engine.inspector.stats().groups
    assert counts.free + counts.idle == counts.total


def test_full_pages_are_in_memory_once(model: Model) -> None:
    """Of 16 questions each has its last page, and its own."""
    policy, count = "snapkv:tokens=100,window=8,after=120", 16
    prompts = [[*PREFIX, seed] for seed in range(count)]

    def pages_in_use(**options: Any) -> int:
        engine, most = make_engine(model, max_num_seqs=count, **options), 0
        for each in asked(prompts, policy):
            engine.add(each)
        while engine.has_work:
            engine.step()
            [counts] = engine.inspector.stats().groups
            if all(each.num_output_tokens for each in engine._scheduler.running) and not engine._scheduler.waiting:
                most = max(most, counts.open + counts.in_use)
        return most

    full, own = 100 // PAGE_TOKENS, -(-(100 % PAGE_TOKENS + NEW_TOKENS) // PAGE_TOKENS)
    assert pages_in_use() <= full + count * own
    assert pages_in_use(enable_prefix_caching=False) >= count * (full + own - 1)


@pytest.mark.parametrize("policy", [SHARED[0], SHARED[1], SHARED[-1]])
def test_samples_of_one_prompt_are_what_each_would_be_alone(model: Model, policy: str) -> None:
    """Each goes its own way from the page that all of them begin to write."""
    sampled = {"n": 4, "temperature": 1.0, "seed": 5}

    def drawn(options: dict[str, Any], times: int) -> list[list[int]]:
        with make_llm(model, **options) as llm:
            for _ in range(times):
                [output] = llm.generate(QUESTIONS[:1], params(policy, **sampled))
            assert llm.cache_stats().compacted_hits == times - 1
            return [each.token_ids for each in output.outputs]

    alone = drawn({"enable_prefix_caching": False}, 1)
    assert len({*map(tuple, alone)}) == 4
    assert drawn({}, 2) == alone
    assert drawn({"max_num_seqs": 4, "max_num_batched_tokens": 16}, 2) == alone


@pytest.mark.parametrize(
    "policy", ["snapkv:tokens=90,window=8,after=120", SHARED[1], "kvzip:tokens=70,chunk=48,after=120"]
)
def test_who_is_sent_back_begins_there_again_or_computes_it_again(model: Model, policy: str) -> None:
    prompts = [[*PREFIX, *question[len(PREFIX) :]] for question in QUESTIONS] + QUESTIONS
    alone = run(make_engine(model, enable_prefix_caching=False), asked(prompts, policy, max_tokens=70))
    engine = make_engine(model, kv_cache_memory_bytes=20 * page_nbytes(model))
    requests = asked(prompts, policy, max_tokens=70)
    assert run(engine, requests) == alone
    assert sum(each.metrics.num_preemptions for each in requests) > 0, "as it is meant to be"
    assert engine.inspector.stats().compacted_hits > len(prompts) - 1
    [counts] = engine.inspector.stats().groups
    assert counts.free + counts.idle == counts.total


def test_a_pool_that_one_sequence_fills_is_enough(model: Model) -> None:
    """It takes no more pages to be the first than to be the only one, or it would wait for itself."""
    prompt = random.Random(3).sample(range(VOCABULARY), k=150)
    for policy in ("snapkv:tokens=143,window=8,after=144", "kvzip:tokens=47,chunk=16,after=60"):
        after = after_of(policy)
        most = -(-(150 + 10) // PAGE_TOKENS)
        engine = make_engine(model, kv_cache_memory_bytes=most * page_nbytes(model))
        [alone] = run(make_engine(model, enable_prefix_caching=False), asked([prompt], policy, max_tokens=10))
        for number in range(3):
            requests = asked([prompt], policy, f"{number}-", max_tokens=10)
            assert run(engine, requests) == [alone]
            assert requests[0].num_cached_tokens in ((0,) if number == 0 else range(after + 1))


def test_who_would_have_no_page_left_for_its_last_token_repeats_its_prompt(model: Model) -> None:
    """Six exact pages, and three of what was left of them, are all there are: it would wait for itself for ever."""
    prompt, policy = random.Random(4).sample(range(VOCABULARY), k=97), "kvzip:tokens=48,chunk=16"
    engine = make_engine(model, kv_cache_memory_bytes=9 * page_nbytes(model))
    first, second = (asked([prompt], policy, name, max_tokens=4) for name in ("first", "second"))
    run(engine, first)
    assert engine.inspector.stats().compacted_pages == 3
    engine.add(second[0])
    for _ in range(60):
        engine.step()
    assert second[0].sequences[0].output_tokens == first[0].sequences[0].output_tokens


@pytest.mark.parametrize("steps", range(1, 8))
def test_a_cancelled_sequence_leaves_nothing_behind(model: Model, steps: int) -> None:
    """While it compresses, while others wait for that, and while it goes on from what is there."""
    for policy in (SHARED[0], SHARED[1], SHARED[-1]):
        engine = make_engine(model, max_num_batched_tokens=48, max_num_seqs=4)
        [alone] = run(make_engine(model), asked(QUESTIONS[2:], policy))
        requests = asked(QUESTIONS, policy)
        for each in requests:
            engine.add(each)
        for each in requests[:2]:
            for _ in range(steps):
                engine.step()
            engine.cancel(each.request_id)
            engine.inspector.check_integrity()
        run(engine, [])
        assert requests[2].sequences[0].output_tokens == alone
        [counts] = engine.inspector.stats().groups
        assert counts.free + counts.idle == counts.total


def test_who_only_needs_the_exact_prefix_waits_for_no_compression(model: Model) -> None:
    engine = make_engine(model, max_num_batched_tokens=40, max_num_seqs=4)
    first, second = asked(QUESTIONS[:2], "kvzip:tokens=60,chunk=16,after=100")
    other = new_request("other", QUESTIONS[2], params(None))
    for each in (first, second, other):
        engine.add(each)
    while not other.sequences[0].num_output_tokens:
        engine.step()
    assert not first.sequences[0].num_output_tokens
    run(engine, [])
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 100)


def test_a_prompt_that_was_repeated_whole_is_not_repeated_again(model: Model) -> None:
    """Its last token is computed from the exact pages, and then it has what was left of them."""
    policy = "kvzip:tokens=50,chunk=48"
    with make_llm(model, deterministic=True, enable_prefix_caching=False) as llm:
        alone = answers(llm.generate([PREFIX], params(policy, logprobs=0)))
    with make_llm(model, deterministic=True) as llm:
        first, second = (llm.generate([PREFIX], params(policy, logprobs=0))[0] for _ in range(2))
        assert answers([first]) == answers([second]) == alone
        assert second.num_cached_tokens == len(PREFIX) - 1
        assert second.metrics.num_computed_tokens == NEW_TOKENS
        assert second.outputs[0].num_omitted_tokens == len(PREFIX) - 50
        [question] = llm.generate(QUESTIONS[:1], params(f"{policy},after=120"))
        assert question.num_cached_tokens == len(PREFIX), "and others go on from there"
        stats = llm.cache_stats()
        assert (stats.compacted_hits, stats.hit_tokens) == (2, 2 * len(PREFIX) - 1), (
            "each token of a prompt counts once"
        )
    with make_llm(model, deterministic=True, max_num_batched_tokens=37, max_num_seqs=8) as llm:
        outputs = llm.generate([PREFIX, PREFIX], params(policy, logprobs=0))
        assert answers(outputs) == alone * 2
        assert llm.cache_stats().compacted_hits == 1, "the second ends its repetition once the first has"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_windows_beside_resume_where_a_page_ends(dtype: str) -> None:
    model = windowed_model(dtype)
    for after, hits in ((112, 2), (111, 0)):
        for policy in (f"snapkv:tokens=40,window=8,after={after}", f"kvzip:tokens=40,chunk=48,after={after}"):
            alone = run(make_engine(model, enable_prefix_caching=False), asked(QUESTIONS, policy))
            engine = make_engine(model)
            one_by_one = [run(engine, asked([each], policy, str(i)))[0] for i, each in enumerate(QUESTIONS)]
            assert one_by_one == alone
            stats = engine.inspector.stats()
            assert (stats.compacted_hits, bool(stats.compacted_pages)) == (hits, bool(hits))
            engine = make_engine(model, max_num_batched_tokens=37, max_num_seqs=8)
            assert run(engine, asked(QUESTIONS, policy)) == alone
            exact = run(make_engine(model), asked(QUESTIONS, None))
            assert run(engine, asked(QUESTIONS, None, "exact")) == exact, "nothing that follows is anybody else's"


@pytest.mark.parametrize("family", ["qwen3_next", "jamba", "deepseek_v3"])
def test_states_are_kept_where_a_prefix_was_compressed(family: str) -> None:
    model, prompts = Model.from_transformers(build_tiny(family)), [[64 + each % 64 for each in q] for q in QUESTIONS]
    for policy in ("snapkv:tokens=40,window=8,after=110", "kvzip:tokens=60,chunk=48,after=110"):
        alone = run(make_engine(model, enable_prefix_caching=False), asked(prompts, policy))
        engine = make_engine(model, max_num_batched_tokens=37, max_num_seqs=8)
        requests = asked(prompts, policy)
        assert run(engine, requests) == alone
        assert num_cached(requests) == [0, 110, 110]


def test_it_is_told_what_was_read_and_why_no_more(model: Model) -> None:
    with make_llm(model) as llm:
        first, second = (llm.generate([each], params(SHARED[0]))[0].cache_report for each in QUESTIONS[:2])
        assert (first.num_read_tokens, first.uncached_tokens, first.written_tokens) == (0, 129, 120)
        assert (second.num_read_tokens, second.uncached_tokens, second.written_tokens) == (120, 9, 0)
        assert (second.cause, second.first_missed_token, second.missed_tokens) == (MissCause.COMPRESSED, 120, 0)
        stats = llm.cache_stats()
        assert (stats.hit_tokens, stats.queried_tokens, stats.compacted_pages) == (120, 258, 3)


def test_a_lease_of_the_exact_prefix_is_not_made_longer(model: Model) -> None:
    engine = make_engine(model)
    run(engine, asked([QUESTIONS[0]], None, "leased", max_tokens=1, breakpoints=(Breakpoint(80, 60.0),)))
    run(engine, asked(QUESTIONS[:1], SHARED[0]))
    [before] = engine.inspector.leases()
    run(engine, asked(QUESTIONS[1:2], SHARED[0], "second"))
    [after] = engine.inspector.leases()
    assert engine.inspector.stats().compacted_hits == 1
    assert after.num_hits == before.num_hits


def test_a_tenant_keeps_its_share_whatever_others_have_compressed(model: Model) -> None:
    tenants = {"small": TenantShare(page_quota=0.5)}
    engine = make_engine(model, kv_cache_memory_bytes=24 * page_nbytes(model), tenants=tenants)
    prompts = [random.Random(seed).sample(range(VOCABULARY), k=129) for seed in range(6)]
    for number, prompt in enumerate(prompts):
        run(engine, asked([prompt], "snapkv:tokens=100,window=8,after=120", f"{number}-"))
    for number, question in enumerate(QUESTIONS):
        requests = asked([question], SHARED[0], f"small{number}-", tenant="small")
        run(engine, requests)
        assert num_cached(requests) == [len(PREFIX) if number else 0]


def test_tiers_hear_nothing_of_it(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    """Their records have the names of exact pages."""
    engine = make_engine(model, kv_cache_memory_bytes=16 * page_nbytes(model), kv_host_bytes=1 << 20)
    caplog.clear()
    try:
        exact = run(make_engine(model), asked(QUESTIONS, None))
        for number, question in enumerate(QUESTIONS):
            run(engine, asked([question], f"snapkv:tokens=100,window=8,after={100 + number}", f"{number}-"))
        assert run(engine, asked(QUESTIONS, None, "exact")) == exact
        assert engine.inspector.stats().evicted_pages > 0
        assert not caplog.records
    finally:
        engine.close()


def test_a_failed_step_forgets_what_it_went_on_from(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what it was only about to go on from."""

    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    for prompt, policy, num_left in ((QUESTIONS[1], SHARED[0], 0), (PREFIX, "kvzip:tokens=40,chunk=48", 3)):
        engine = make_engine(model)
        run(engine, asked([prompt], policy))
        assert engine.inspector.stats().compacted_pages == 3
        monkeypatch.setattr(engine._forward, "queue", fail)
        [request] = asked([prompt], policy, "fails")
        engine.add(request)
        engine.step()
        assert request.error is not None
        engine.inspector.check_integrity()
        assert engine.inspector.stats().compacted_hits == 1, "as it is meant to be"
        assert engine.inspector.stats().compacted_pages == num_left
        [counts] = engine.inspector.stats().groups
        assert counts.free + counts.idle == counts.total
