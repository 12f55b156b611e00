"""Sequences that read their pages in part: against dense attention with the rest masked, and beside all else."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, DynamicCache, LlamaForCausalLM

from engine.tiny import PAGE_TOKENS, POOL_NBYTES, VOCABULARY, make_engine, make_llm, tiny_config, windowed_model
from oracle.families import build_tiny
from pagoda import LLM, SamplingParams
from pagoda.cache.reading import LEAST_PAGES
from pagoda.config import EngineConfig
from pagoda.engine.request import new_request
from pagoda.errors import ConfigError, InvalidSamplingError
from pagoda.models.loader import Model
from pagoda.planning.memory import MemoryPlan

NEW_TOKENS = 40
PROMPT = random.Random(0).sample(range(VOCABULARY), k=150)
QUEST = "quest:tokens=64,dense_layers=0"
ORACLE = "oracle of pages"


@pytest.fixture(scope="module")
def network() -> LlamaForCausalLM:
    torch.manual_seed(0)
    AttentionInterface.register(ORACLE, masked_attention)
    return LlamaForCausalLM._from_config(tiny_config(), attn_implementation=ORACLE).eval()


@pytest.fixture(scope="module")
def model(network: LlamaForCausalLM) -> Model:
    twin = LlamaForCausalLM._from_config(tiny_config()).eval()
    twin.load_state_dict(network.state_dict())
    return Model.from_transformers(twin)


def masked_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    """Attention with every token there; `module.budget` pages of one token that is generated are seen."""
    query, key, value = query[0], key[0].repeat_interleave(2, dim=0), value[0].repeat_interleave(2, dim=0)
    scores = query @ key.transpose(1, 2) / 4
    rows, length = scores.shape[1:]
    scores = scores.masked_fill(torch.ones(rows, length).triu(length - rows + 1).bool(), float("-inf"))
    budget, num_pages = getattr(module, "budget", 0), -(-length // PAGE_TOKENS)
    if rows == 1 and budget and num_pages > budget:
        hidden = torch.ones(len(key), num_pages).bool()
        for pair in (slice(0, 2), slice(2, 4)):
            bounds = [
                max(bound_of(query[head, 0], key[head, page * PAGE_TOKENS :][:PAGE_TOKENS]) for head in range(4)[pair])
                for page in range(1, num_pages - 1)
            ]
            best = sorted(range(1, num_pages - 1), key=lambda page, bounds=bounds: (-bounds[page - 1], page))
            hidden[pair, [0, num_pages - 1, *best[: budget - 2]]] = False
        scores = scores.masked_fill(hidden.repeat_interleave(PAGE_TOKENS, 1)[:, None, :length], float("-inf"))
    return (scores.softmax(-1) @ value).transpose(0, 1)[None], None


def bound_of(query: torch.Tensor, keys: torch.Tensor) -> float:
    """Channel by channel the larger of two products."""
    total = 0.0
    for number, own in zip(query.tolist(), keys.T, strict=True):
        total += max(number * outward(own.max(), 1), number * outward(own.min(), -1))
    return total


def outward(number: torch.Tensor, sign: int) -> float:
    """The nearest number of bf16 that is not nearer to zero in that direction."""
    near = number.bfloat16()
    if (near.float() - number) * sign < 0:
        near = torch.nextafter(near, torch.tensor(sign * float("inf")).bfloat16())
    return float(near)


@torch.inference_mode()
def dense_tokens(network: LlamaForCausalLM, prompt: list[int], budget: int, dense_layers: int) -> list[int]:
    for layer in network.model.layers:
        layer.self_attn.budget = budget if layer.self_attn.layer_idx >= dense_layers else 0
    cache, tokens = DynamicCache(), list(prompt)
    while len(tokens) < len(prompt) + NEW_TOKENS:
        rows = torch.tensor([tokens[cache.get_seq_length() :]])
        tokens.append(int(network(rows, past_key_values=cache).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def params(sparse: str | None = None, **more: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": NEW_TOKENS, "sparse_attention": sparse, **more})


def tokens_of(llm: LLM, prompts: list[list[int]], sparse: str | None = None, **more: Any) -> list[list[int]]:
    outputs = llm.generate(prompts, params(sparse, **more))
    return [sample.token_ids for output in outputs for sample in output.outputs]


@pytest.mark.parametrize(("budget", "dense_layers"), [(4, 0), (3, 1), (7, 0), (4, 2)])
def test_tokens_are_those_of_a_dense_cache_with_all_else_masked(
    network: LlamaForCausalLM, model: Model, budget: int, dense_layers: int
) -> None:
    text = f"quest:tokens={budget * PAGE_TOKENS - 3},dense_layers={dense_layers}"
    expected = dense_tokens(network, PROMPT, budget, dense_layers)
    exact = dense_tokens(network, PROMPT, 0, 0)
    assert (expected == exact) == (dense_layers == 2), "it shows"
    with make_llm(model, sparse_attention=text) as llm:
        assert tokens_of(llm, [PROMPT]) == [expected]
        assert tokens_of(llm, [PROMPT]) == [expected], "from what is held"
        assert tokens_of(llm, [PROMPT], "none") == [exact]
    with make_llm(model, sparse_attention=QUEST, max_num_batched_tokens=37, max_num_seqs=8) as llm:
        assert tokens_of(llm, [PROMPT], text) == [expected], "however a prompt is cut"


@pytest.mark.parametrize("format", ["bf16", "int8", "fp8_e4m3", "int4", "int4_rotated", "k8v4"])
def test_a_budget_beyond_the_sequence_changes_nothing(model: Model, format: str) -> None:
    """To the bit; one token less and something is left out."""
    options = {"kv_cache_dtype": format, "kv_cache_calibration": "none", "deterministic": True}

    def logprobs(llm: LLM, sparse: str | None) -> list[float]:
        [output] = llm.generate([PROMPT], params(sparse, logprobs=0))
        return [each.logprob for each in output.outputs[0].logprobs]

    with make_llm(model, **options) as llm:
        exact = logprobs(llm, None)
    with make_llm(model, sparse_attention=QUEST, **options) as llm:
        assert logprobs(llm, f"quest:tokens={len(PROMPT) + NEW_TOKENS}") == exact
        assert logprobs(llm, None) != exact


def test_requests_of_all_kinds_are_what_each_would_be_alone(model: Model) -> None:
    """One after the other and together, compressed ones beside those that read in part; long enough to be replayed."""
    prompts = [PROMPT[:count] for count in (30, 90, 131, 150)] * 2
    asked = [
        *(params(), params("none"), params("quest:tokens=48,dense_layers=1")),
        params(kv_compression="snapkv:tokens=48,window=8,head_floor=0.2"),
        params(kv_compression="tova:tokens=40,every=3"),
        *(params(n=3), params(context_full="truncate_oldest"), params("quest:tokens=64")),
    ]
    with make_llm(model, sparse_attention=QUEST) as llm:
        alone = [llm.generate([prompt], each)[0] for prompt, each in zip(prompts, asked, strict=True)]
        llm.reset_prefix_cache()
        for _ in range(2):
            together = llm.generate(prompts, asked)
            for one, other in zip(alone, together, strict=True):
                assert [each.token_ids for each in one.outputs] == [each.token_ids for each in other.outputs]


def test_what_is_written_is_nobody_elses_and_the_prompt_is_as_it_was(model: Model) -> None:
    with make_llm(model) as llm:
        [exact] = tokens_of(llm, [PROMPT])
    with make_llm(model, sparse_attention=QUEST) as llm:
        [answer] = tokens_of(llm, [PROMPT])
        assert answer != exact
        [again] = llm.generate([[*PROMPT, *answer, 1]], params("none", max_tokens=1))
        whole = len(PROMPT) // PAGE_TOKENS * PAGE_TOKENS
        assert again.num_cached_tokens == whole, "full pages of the prompt, and nothing behind"
        assert tokens_of(llm, [PROMPT], "none") == [exact]
        [short] = tokens_of(llm, [PROMPT[:20]], max_tokens=30)
        [other] = llm.generate([[*PROMPT[:20], *short, 1]], params("none", max_tokens=1))
        assert other.num_cached_tokens >= 20 + 29 - PAGE_TOKENS, "up to the budget all is exact, and shared"


def test_sequences_that_are_sent_back_say_the_same(model: Model) -> None:
    """Pages run short, are given to others and are summarised anew; what was generated is computed again as it was."""
    prompts = [random.Random(seed).choices(range(VOCABULARY), k=60 + 11 * seed) for seed in range(6)]
    with make_llm(model, sparse_attention=QUEST) as llm:
        expected = [tokens_of(llm, [each], max_tokens=90)[0] for each in prompts]
        page_nbytes = llm.engine.memory.geometries[0].page_nbytes
    with make_llm(model, sparse_attention=QUEST, kv_cache_memory_bytes=27 * page_nbytes) as llm:
        for _ in range(2):
            outputs = llm.generate(prompts, params(max_tokens=90))
            assert [each.outputs[0].token_ids for each in outputs] == expected
        assert sum(each.metrics.num_preemptions for each in outputs) > 0


def test_what_it_read_in_part_is_taken_from_nobody(model: Model) -> None:
    """Others may hold the same tokens, computed with all of theirs."""
    engine = make_engine(model, sparse_attention=QUEST)
    for prompt, exact in ((PROMPT, len(PROMPT)), (PROMPT[:20], 4 * PAGE_TOKENS)):
        request = new_request(str(exact), prompt, params())
        engine.add(request)
        [sequence] = request.sequences
        assert sequence.num_resumable == len(prompt) - 1
        sequence.tokens.extend(PROMPT)
        assert sequence.num_resumable == exact


def test_pages_that_are_given_to_others_are_summarised_anew(model: Model) -> None:
    """One sequence after the other in the same few pages, against engines of their own."""
    prompts = [random.Random(seed).choices(range(VOCABULARY), k=150) for seed in range(5)]
    with make_llm(model, sparse_attention=QUEST) as llm:
        page_nbytes = llm.engine.memory.geometries[0].page_nbytes
    expected = []
    for prompt in prompts:
        with make_llm(model, sparse_attention=QUEST) as llm:
            expected += tokens_of(llm, [prompt])
    with make_llm(model, sparse_attention=QUEST, kv_cache_memory_bytes=16 * page_nbytes) as llm:
        assert [tokens_of(llm, [prompt])[0] for prompt in prompts] == expected
        assert llm.cache_stats().groups[0].total <= 15


def test_windows_are_left_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    model = windowed_model("float32")
    with make_llm(model, sparse_attention=QUEST) as llm:
        sparse = tokens_of(llm, [PROMPT])
        assert sparse != tokens_of(llm, [PROMPT], "none")
        groups = [llm.engine.memory.summary_nbytes(each) for each in llm.engine.memory.geometries]
    assert sorted(nbytes > 0 for nbytes in groups) == [False, True]
    assert "layers of reach sliding read what their window" in caplog.text


def test_summaries_are_part_of_the_memory_for_pages(model: Model) -> None:
    def memory(sparse: str) -> MemoryPlan:
        return make_engine(model, sparse_attention=sparse).memory

    with_them, without = memory(QUEST), memory("none")
    [geometry] = without.geometries
    assert without.nbytes == without.num_pages[0] * geometry.page_nbytes
    # Two layers and KV heads of 16 channels in fp32: 32 numbers of two bytes each, and a byte for each layer.
    assert with_them.nbytes == with_them.num_pages[0] * (geometry.page_nbytes + 2 * (2 * 32 * 2 + 1))
    assert POOL_NBYTES - geometry.page_nbytes * 2 < with_them.nbytes <= POOL_NBYTES


def test_what_cannot_be_is_refused_at_start(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"sparse_attention is 'quest': quest needs a budget: give tokens, as in"):
        make_llm(model, sparse_attention="quest")
    with pytest.raises(ConfigError, match=r"sparse_attention is 'snapkv:tokens=9': give none, or quest with a budget"):
        make_llm(model, sparse_attention="snapkv:tokens=9")
    with pytest.raises(ConfigError, match=r"are 2 pages of 16, .* give tokens=48 or more"):
        make_llm(model, sparse_attention=f"quest:tokens={(LEAST_PAGES - 1) * PAGE_TOKENS}")
    with pytest.raises(ConfigError, match="does not go with kv_compression"):
        make_llm(model, sparse_attention=QUEST, kv_compression="knorm:tokens=40")
    with pytest.raises(ConfigError, match="must be quest with its budget, or none"):
        EngineConfig(sparse_attention=5)
    alibi, latent = (build_tiny(family) for family in ("bloom", "deepseek_v3"))
    with pytest.raises(ConfigError, match="scores depend on the positions of tokens"):
        make_llm(Model.from_transformers(alibi), sparse_attention=QUEST)
    with pytest.raises(ConfigError, match="latents are keys and values at once"):
        make_llm(Model.from_transformers(latent), sparse_attention=QUEST)


def test_what_cannot_be_is_refused_to_the_request(model: Model) -> None:
    with make_llm(model) as llm:
        with pytest.raises(InvalidSamplingError, match="needs summaries of pages, which this engine keeps none of"):
            tokens_of(llm, [PROMPT], QUEST)
        assert tokens_of(llm, [PROMPT], "none") == tokens_of(llm, [PROMPT])
    with make_llm(model, sparse_attention=QUEST) as llm:
        for given, message in (("quest:tokens=5", "give tokens=48 or more"), ("quest:pages=5", "takes each of these")):
            with pytest.raises(InvalidSamplingError, match=message):
                tokens_of(llm, [PROMPT], given)
        with pytest.raises(InvalidSamplingError, match="does not go with kv_compression"):
            tokens_of(llm, [PROMPT], QUEST, kv_compression="knorm:tokens=40")
        assert len(tokens_of(llm, [PROMPT], None, kv_compression="knorm:tokens=40")[0]) == NEW_TOKENS
    with pytest.raises(InvalidSamplingError, match="sparse_attention"):
        SamplingParams(sparse_attention=3)


@pytest.mark.parametrize(("dense_layers", "is_read_in_part"), [(0, True), (1, True), (2, False)])
def test_pages_that_are_read_and_skipped_are_counted(model: Model, dense_layers: int, is_read_in_part: bool) -> None:
    """For each token that is generated and computed, once for all layers that choose."""
    with make_llm(model, sparse_attention=f"quest:tokens=64,dense_layers={dense_layers}") as llm:
        assert (llm.cache_stats().read_pages, llm.cache_stats().skipped_pages) == (0, 0)
        tokens_of(llm, [PROMPT])
        lengths = range(len(PROMPT) + 1, len(PROMPT) + NEW_TOKENS)
        pages = [-(-length // PAGE_TOKENS) for length in lengths]
        budget = 64 // PAGE_TOKENS
        expected = (sum(min(each, budget) for each in pages), sum(max(each - budget, 0) for each in pages))
        stats = llm.cache_stats()
        assert (stats.read_pages, stats.skipped_pages) == (expected if is_read_in_part else (0, 0))
        tokens_of(llm, [PROMPT], "none")
        assert llm.cache_stats().read_pages == stats.read_pages
