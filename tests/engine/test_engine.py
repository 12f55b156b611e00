"""The engine against itself: cold, warm, chunked, batched, preempted and forked runs of one tiny model agree."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
import torch

from engine.tiny import CONTEXT, VOCABULARY
from pagoda import LLM, FinishReason, RequestOutput, SamplingParams
from pagoda.errors import (
    EmptyPromptError,
    EngineClosedError,
    InvalidSamplingError,
    NonFiniteCacheError,
    NonFiniteLogitsError,
    PromptTooLongError,
    RequestError,
    TokenizerRequiredError,
    TokenOutOfRangeError,
)
from pagoda.models.loader import model_from_config
from pagoda.models.model import Model

GREEDY = SamplingParams(temperature=0, max_tokens=12)
PAGE_NBYTES = 2 * 2 * 2 * 16 * 4 * 16  # planes x layers x KV heads x width x fp32 x tokens


def make(model: Model, num_pages: int = 256, **options: object) -> LLM:
    defaults = {"num_threads": 1, "block_size": 16, "kv_cache_memory_bytes": num_pages * PAGE_NBYTES}
    return LLM(model, **{**defaults, **options})  # type: ignore[arg-type]


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [sample.token_ids for output in outputs for sample in output.outputs]


def eager_network(model: Model) -> Any:
    """The same weights with transformers' own attention."""
    network = model_from_config(copy.deepcopy(model.config), dtype="float32", seed=0).network
    network.set_attn_implementation("eager")
    return network


@torch.inference_mode()
def greedy_by_hugging_face(model: Model, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers' own uncached model continues each prompt with."""
    network = eager_network(model)
    continuations = []
    for tokens in prompts:
        ids = torch.tensor([tokens])
        for _ in range(GREEDY.max_tokens or 0):
            ids = torch.cat([ids, network(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        continuations.append(ids[0, len(tokens) :].tolist())
    return continuations


PROMPTS = [prompt(length, seed=length) for length in (1, 15, 16, 17, 33, 100, 160)]


@pytest.fixture(scope="module")
def expected(model: Model) -> list[list[int]]:
    return greedy_by_hugging_face(model, PROMPTS)


def test_cold_and_warm_runs_give_hugging_faces_tokens(model: Model, expected: list[list[int]]) -> None:
    with make(model) as llm:
        for tokens_in, tokens_out in zip(PROMPTS, expected, strict=True):
            cold, warm = (llm.generate(tokens_in, GREEDY)[0] for _ in range(2))
            assert cold.outputs[0].token_ids == warm.outputs[0].token_ids == tokens_out
            assert cold.num_cached_tokens < len(tokens_in)
            assert warm.num_cached_tokens == len(tokens_in) - 1
            llm.check_integrity()


@pytest.mark.parametrize("max_num_batched_tokens", [7, 16, 37])
def test_chunked_and_batched_prefill_gives_the_same_tokens(
    model: Model, expected: list[list[int]], max_num_batched_tokens: int
) -> None:
    with make(model, max_num_seqs=7, max_num_batched_tokens=max_num_batched_tokens) as llm:
        assert tokens(llm.generate(PROMPTS, GREEDY)) == expected
        llm.check_integrity()


def test_preempted_sequences_give_the_same_tokens(model: Model, expected: list[list[int]]) -> None:
    with make(model, num_pages=12) as llm:
        outputs = llm.generate(PROMPTS, GREEDY)
        assert tokens(outputs) == expected
        llm.check_integrity()


def test_a_long_queue_on_a_tiny_pool_preempts_and_finishes(model: Model) -> None:
    prompts = [prompt(20, seed) for seed in range(10)]
    params = SamplingParams(temperature=0, max_tokens=40)
    with make(model) as roomy, make(model, num_pages=13) as tight:
        crowded = tight.generate(prompts, params)
        assert sum(output.metrics.num_preemptions for output in crowded) > 0
        assert tokens(crowded) == tokens(roomy.generate(prompts, params))
        tight.check_integrity()


def test_a_fully_cached_prompt_computes_one_token(model: Model) -> None:
    with make(model) as llm:
        for length in (64, 70):
            llm.generate(prompt(length, seed=length), GREEDY)
            again = llm.generate(prompt(length, seed=length), SamplingParams(temperature=0, max_tokens=1))[0]
            assert again.metrics.num_computed_tokens == 1


def test_a_shared_prefix_is_computed_once_by_requests_that_arrive_together(model: Model) -> None:
    prefix = prompt(160)
    prompts = [[*prefix, seed, *prompt(4, seed)] for seed in range(16)]
    with make(model, max_num_batched_tokens=64, max_num_seqs=64) as llm:
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=1))
        assert sum(output.metrics.num_computed_tokens for output in outputs) == 160 + 16 * 5


def test_the_next_turn_of_a_conversation_hits_the_generated_tokens_too(model: Model) -> None:
    with make(model) as llm:
        first = llm.generate(prompt(30), GREEDY)[0]
        history = first.prompt_token_ids + first.outputs[0].token_ids
        second = llm.generate([history + prompt(3, seed=9)], GREEDY)[0]
        # The last generated token was never run through the model.
        assert second.num_cached_tokens == len(history) - 1


def test_a_warm_run_in_bf16_reads_the_bytes_the_cold_run_wrote(model: Model) -> None:
    """Sealed pages never change, so whatever is computed later attends to the very same bytes."""
    half = model_from_config(copy.deepcopy(model.config), dtype="bfloat16", seed=0)
    with make(half, num_pages=64) as llm:
        llm.generate(prompt(100), GREEDY)
        sites = llm.engine._forward._sites
        sealed = {id(site.layer.pages): site.layer.pages.clone() for site in sites}
        used = llm.cache_stats().groups[0].idle
        warm = llm.generate([prompt(100) + prompt(20, seed) for seed in range(3)] + [prompt(100)], GREEDY)
        assert [output.num_cached_tokens for output in warm] == [100, 100, 100, 99]
        for site in sites:
            before, now = sealed[id(site.layer.pages)], site.layer.pages
            # Pages are taken in order from a fresh pool, so the first run's are the first `used`.
            assert torch.equal(before[:used], now[:used])
        llm.check_integrity()


def test_without_prefix_caching_nothing_is_shared_or_kept(model: Model, expected: list[list[int]]) -> None:
    with make(model, enable_prefix_caching=False) as llm:
        assert tokens(llm.generate(PROMPTS, GREEDY)) == expected
        assert tokens(llm.generate(PROMPTS, GREEDY)) == expected
        assert llm.cache_stats().hit_tokens == 0
        assert llm.cache_stats().groups[0].free == llm.cache_stats().groups[0].total


def test_different_salts_share_nothing(model: Model) -> None:
    with make(model) as llm:
        llm.generate(prompt(64), GREEDY, cache_salt="a")
        assert llm.generate(prompt(64), GREEDY, cache_salt="b")[0].num_cached_tokens == 0
        assert llm.generate(prompt(64), GREEDY, cache_salt="a")[0].num_cached_tokens == 63


def test_samples_of_one_request_share_the_prompt_and_equal_single_requests_of_their_seed(model: Model) -> None:
    params = SamplingParams(n=4, seed=7, max_tokens=20)
    with make(model) as llm:
        output = llm.generate(prompt(40), params)[0]
        assert [sample.index for sample in output.outputs] == [0, 1, 2, 3]
        assert len({tuple(sample.token_ids) for sample in output.outputs}) > 1
        assert output.metrics.num_computed_tokens == 40 + 4 * 19
        alone = llm.generate(prompt(40), SamplingParams(seed=7, max_tokens=20))[0]
        assert alone.outputs[0].token_ids == output.outputs[0].token_ids
        llm.check_integrity()


def test_the_same_seed_gives_the_same_tokens_whatever_else_is_running(model: Model) -> None:
    params = SamplingParams(seed=3, max_tokens=20, temperature=1.5)
    with make(model) as llm:
        alone = llm.generate(prompt(40), params)[0]
        crowd = [prompt(length, length) for length in (5, 50, 33)]
        together = llm.generate([*crowd, prompt(40)], [SamplingParams(max_tokens=30)] * 3 + [params])
        assert together[-1].outputs[0].token_ids == alone.outputs[0].token_ids


def test_a_sequence_ends_at_the_context_limit(model: Model) -> None:
    with make(model, max_model_len=50) as llm:
        output = llm.generate(prompt(45), SamplingParams(max_tokens=None, temperature=0))[0]
        assert output.outputs[0].finish_reason is FinishReason.LENGTH
        assert len(output.outputs[0].token_ids) == 5


def test_a_pool_as_big_as_one_request_serves_it_again_and_again(model: Model) -> None:
    params = SamplingParams(temperature=0, max_tokens=None)
    with make(model, num_pages=4) as llm:
        assert llm.engine.max_model_len == 64
        runs = [llm.generate(prompt(60), params)[0].outputs[0].token_ids for _ in range(3)]
        assert len(runs[0]) == 4
        assert runs[0] == runs[1] == runs[2]
        llm.check_integrity()


def test_stop_tokens_end_a_sequence_unless_below_min_tokens(model: Model) -> None:
    with make(model) as llm:
        free = llm.generate(prompt(20), GREEDY)[0].outputs[0].token_ids
        stop = free[4]
        first = free.index(stop)
        params = SamplingParams(temperature=0, max_tokens=12, stop_token_ids=[stop])
        stopped = llm.generate(prompt(20), params)[0].outputs[0]
        assert stopped.token_ids == free[: first + 1]
        assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, stop)
        params = SamplingParams(temperature=0, max_tokens=12, stop_token_ids=[stop], min_tokens=12)
        assert len(llm.generate(prompt(20), params)[0].outputs[0].token_ids) == 12


def test_logprobs_are_those_of_the_model(model: Model) -> None:
    with make(model) as llm:
        output = llm.generate(prompt(20), SamplingParams(temperature=0, max_tokens=3, logprobs=5))[0].outputs[0]
        assert output.logprobs is not None and output.cumulative_logprob is not None
        ids = torch.tensor([prompt(20) + output.token_ids[:-1]])
        with torch.inference_mode():
            expected = eager_network(model)(input_ids=ids, use_cache=False).logits[0, 19:].log_softmax(-1)
        for entry, token, row in zip(output.logprobs, output.token_ids, expected, strict=True):
            assert entry.token_id == token and entry.rank == 1 and len(entry.top) == 5
            # fp32 logits of magnitude ~10 through 2 layers: relative rounding of 2^-24 x ~100 operations.
            assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
            assert list(entry.top) == row.topk(5).indices.tolist()
        assert output.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in output.logprobs))


def test_streamed_tokens_are_those_of_generate_and_the_last_chunk_has_the_output(model: Model) -> None:
    with make(model) as llm:
        chunks = list(llm.stream(prompt(20), GREEDY))
        streamed = [token for chunk in chunks for token in chunk.token_ids]
        assert chunks[-1].output is not None
        assert (
            streamed
            == chunks[-1].output.outputs[0].token_ids
            == llm.generate(prompt(20), GREEDY)[0].outputs[0].token_ids
        )


def test_leaving_a_stream_frees_its_pages(model: Model) -> None:
    with make(model) as llm:
        stream = llm.stream(prompt(20), SamplingParams(max_tokens=400))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        llm.check_integrity()
        counts = llm.cache_stats().groups[0]
        assert counts.open == counts.in_use == 0


@pytest.mark.parametrize(
    ("bad", "params", "error"),
    [
        ([], GREEDY, EmptyPromptError),
        ([1, VOCABULARY], GREEDY, TokenOutOfRangeError),
        ([-1], GREEDY, TokenOutOfRangeError),
        (prompt(CONTEXT), GREEDY, PromptTooLongError),
        ("text", GREEDY, TokenizerRequiredError),
        ([1], SamplingParams(stop="x"), TokenizerRequiredError),
        ([1], SamplingParams(n=300), InvalidSamplingError),
        ([1], SamplingParams(logit_bias={VOCABULARY: 1.0}), InvalidSamplingError),
    ],
)
def test_a_bad_request_is_refused_before_any_of_its_batch_starts(
    model: Model, bad: object, params: SamplingParams, error: type[RequestError]
) -> None:
    with make(model) as llm:
        with pytest.raises(error):
            llm.generate([[1, 2, 3], bad], params)  # type: ignore[list-item]
        assert llm.cache_stats().queried_tokens == 0
        llm.check_integrity()
        assert len(llm.generate([1, 2, 3], GREEDY)[0].outputs[0].token_ids) == 12


def test_a_prompt_longer_than_the_pool_says_so(model: Model) -> None:
    with make(model, num_pages=4) as llm, pytest.raises(PromptTooLongError, match="kv_cache_memory_bytes"):
        llm.generate(prompt(65), GREEDY)


def test_non_finite_keys_end_that_request_only_and_its_pages_are_forgotten(model: Model) -> None:
    broken = model_from_config(model.config, dtype="float32", seed=0)
    with torch.no_grad():
        broken.network.get_input_embeddings().weight[VOCABULARY - 1] = float("nan")
    good, bad = [*prompt(40)[:39], 1], [*([5] * 20), VOCABULARY - 1, *([6] * 20)]
    good = [token % (VOCABULARY - 1) for token in good]
    with make(broken) as llm:
        with pytest.raises(NonFiniteCacheError):
            llm.generate([good, bad], SamplingParams(temperature=0, max_tokens=2))
        llm.check_integrity()
        retry = llm.generate(bad[:20], SamplingParams(temperature=0, max_tokens=1))[0]
        assert retry.num_cached_tokens == 0
        llm.generate(good, SamplingParams(temperature=0, max_tokens=2))


@pytest.mark.parametrize("kv_cache_dtype", ["fp32", "bf16", "int8", "int4"])
def test_non_finite_keys_are_found_in_the_chunk_that_stores_them(model: Model, kv_cache_dtype: str) -> None:
    """The prompt has chunks to come, and a page that others wait for: neither may see it."""
    broken = model_from_config(model.config, dtype="float32", seed=0)
    with torch.no_grad():
        broken.network.get_input_embeddings().weight[VOCABULARY - 1] = float("inf")
    bad = [*([5] * 20), VOCABULARY - 1, *([6] * 60)]
    with make(broken, kv_cache_dtype=kv_cache_dtype, max_num_batched_tokens=32, max_num_seqs=4) as llm:
        with pytest.raises(NonFiniteCacheError):
            llm.generate([bad, bad[:70]], SamplingParams(temperature=0, max_tokens=2))
        llm.check_integrity()
        counts = llm.cache_stats().groups[0]
        assert counts.free == counts.total


def test_non_finite_logits_end_the_request(model: Model) -> None:
    broken = model_from_config(model.config, dtype="float32", seed=0)
    with torch.no_grad():
        broken.network.get_output_embeddings().weight[3] = float("nan")
    with make(broken) as llm:
        with pytest.raises(NonFiniteLogitsError):
            llm.generate(prompt(20), GREEDY)
        llm.check_integrity()


def test_a_failing_forward_ends_its_requests_and_the_next_one_works(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(model) as llm:
        with monkeypatch.context() as patch:
            patch.setattr(llm.engine.model, "forward", lambda *args: 1 / 0)
            with pytest.raises(RequestError, match="ZeroDivisionError"):
                llm.generate(prompt(20), GREEDY)
        llm.check_integrity()
        counts = llm.cache_stats().groups[0]
        assert counts.free == counts.total
        assert len(llm.generate(prompt(20), GREEDY)[0].outputs[0].token_ids) == 12


def test_interrupting_generate_frees_its_pages(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def __init__(self, requests: list[object], **_: object) -> None: ...

        def __iter__(self) -> object:
            raise KeyboardInterrupt

    with make(model) as llm:
        with monkeypatch.context() as patch:
            patch.setattr("pagoda.llm.tqdm", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                llm.generate([prompt(20), prompt(30)], SamplingParams(max_tokens=400))
        llm.check_integrity()
        assert llm.cache_stats().groups[0].in_use == 0


async def _together(llm: LLM) -> list[list[int]]:
    first, second = await asyncio.gather(
        llm.generate_async(prompt(20), GREEDY), llm.generate_async([prompt(33)], GREEDY)
    )
    streamed = [chunk async for chunk in llm.stream_async(prompt(20), GREEDY)]
    return [*tokens(first + second), [token for chunk in streamed for token in chunk.token_ids]]


def test_async_versions_give_the_same_tokens(model: Model) -> None:
    with make(model) as llm:
        short, long = tokens(llm.generate([prompt(20), prompt(33)], GREEDY))
        assert asyncio.run(_together(llm)) == [short, long, short]


def test_a_closed_engine_refuses_requests(model: Model) -> None:
    llm = make(model)
    llm.close()
    llm.close()
    with pytest.raises(EngineClosedError):
        llm.generate([1], GREEDY)
