"""Layers with windows through the engine: pages behind them go, and no token changes, wherever a prompt is resumed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, Llama4TextConfig, MistralConfig

from engine.greedy import NEW_TOKENS, generated, tokens
from pagoda import LLM, SamplingParams
from pagoda.cache.groups.rule import window_pages
from pagoda.models.build import random_network
from pagoda.models.model import Model

VOCABULARY = 100
PAGE_TOKENS = 16
STEP_TOKENS = 48
WINDOW = 40
PARAMS = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
LENGTH = 150

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS = {
    "every layer": MistralConfig(num_hidden_layers=2, sliding_window=WINDOW, **SIZES),
    "some layers": Gemma3TextConfig(
        num_hidden_layers=3,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        **SIZES,
    ),
    "chunks": Llama4TextConfig(
        num_hidden_layers=2,
        attention_chunk_size=WINDOW,
        layer_types=["chunked_attention", "full_attention"],
        num_local_experts=2,
        intermediate_size_mlp=64,
        **SIZES,
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def network(request: pytest.FixtureRequest) -> Any:
    """Transformers' own model."""
    return random_network(CONFIGS[request.param], "eager")


@pytest.fixture(scope="module")
def model(network: Any) -> Model:
    return Model.from_transformers(network)


def make(model: Model, num_pages: int = 64, **options: int) -> LLM:
    nbytes = num_pages * PAGE_TOKENS * 4 * model.spec.elements_per_token
    options = {"max_num_batched_tokens": STEP_TOKENS, "max_num_seqs": 4, **options}
    return LLM(model, block_size=PAGE_TOKENS, kv_cache_memory_bytes=nbytes, num_threads=1, **options)


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCABULARY, (length,), generator=generator).tolist()


def window_tables(llm: LLM) -> list[tuple[int, int, int]]:
    """Window, tokens and pages held of every running sequence in groups that have a window."""
    return [
        (geometry.group.span, table.num_tokens, len(table.held))
        for sequence in llm.engine._cache.sequences
        for geometry, table in zip(llm.engine.memory.geometries, sequence.tables, strict=True)
        if geometry.group.span is not None
    ]


def test_the_same_tokens_wherever_a_prompt_is_resumed(model, network):
    """Prompts that leave one another at every token around the borders of pages and windows."""
    story = prompt(LENGTH)
    cuts = sorted(
        {border + offset for border in (0, 16, 32, 40, 48, 80, 96, 120, 128) for offset in (-1, 0, 1, 2)} - {-1}
    )
    prompts = [story, *(story[:cut] + prompt(20, seed=1000 + cut) for cut in cuts), story]
    expected = generated(network, prompts)
    with make(model, num_pages=800) as llm:
        outputs = [llm.generate([each], PARAMS)[0] for each in prompts]
        llm.check_integrity()
    assert tokens(outputs) == expected
    assert [output.num_cached_tokens for output in outputs[1:]] == [*cuts, LENGTH - 1]


@pytest.mark.parametrize("num_pages", [24, 14])
def test_the_same_tokens_where_windows_are_evicted(model, network, num_pages):
    """In any order, chunked and batched, while hits go as deep as what is left allows."""
    story = prompt(LENGTH)
    prompts = [story[:cut] + prompt(20, seed=1000 + cut) for cut in (150, 60, 100, 17, 130, 60, 100, 150, 33, 100)]
    expected = generated(network, prompts)
    with make(model, num_pages) as llm:
        assert tokens(llm.generate(prompts, PARAMS)) == expected
        llm.check_integrity()
        assert tokens([llm.generate([each], PARAMS)[0] for each in prompts]) == expected
        llm.check_integrity()
        assert llm.cache_stats().evicted_pages > 0


def test_forks_share_what_is_in_the_window(model, network):
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, n=3)
    with make(model) as llm:
        assert tokens(llm.generate([prompt(LENGTH)], params)) == generated(network, [prompt(LENGTH)]) * 3
        llm.check_integrity()


def test_a_sequence_holds_the_window_and_no_more(model):
    with make(model, num_pages=80) as llm:
        sizes = set()
        for _ in llm.stream(prompt(1000), SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)):
            sizes |= set(llm.loop.call(lambda: window_tables(llm)).result())  # between two steps
        assert sizes
        for span, num_tokens, num_pages in sizes:
            assert num_pages <= window_pages(span, PAGE_TOKENS, 1), (span, num_tokens)


def test_windows_get_fewer_pages_than_layers_that_keep_all():
    model = Model.from_transformers(random_network(CONFIGS["some layers"], "eager"))
    with make(model, num_pages=400) as llm:
        pages = dict(
            zip(
                [geometry.group.span for geometry in llm.engine.memory.geometries],
                llm.engine.memory.num_pages,
                strict=True,
            )
        )
        assert pages[WINDOW] == pages[None] // 4
        assert llm.engine.memory.nbytes <= 400 * PAGE_TOKENS * 4 * model.spec.elements_per_token
        assert llm.engine.max_model_len == 4096


def test_a_model_of_windows_alone_outlives_its_pool():
    """Nothing is kept of what no layer attends to, so a pool of 160 tokens holds a sequence of 600."""
    model = Model.from_transformers(random_network(CONFIGS["every layer"], "eager"))
    with make(model, num_pages=10) as llm:
        assert llm.engine.max_model_len == 4096
        output = llm.generate([prompt(500)], SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))[0]
        assert output.outputs[0].finish_reason == "length"
        llm.check_integrity()


def test_a_point_where_prompts_part_is_kept_once_it_is_known():
    """Other prompts flood the window's pool; the second request that shares the beginning computes it again, the
    third need not."""
    model = Model.from_transformers(random_network(CONFIGS["some layers"], "eager"))
    beginning = prompt(96)
    with make(model, num_pages=160) as llm:
        hits = []
        for seed in range(4):
            output = llm.generate([beginning + prompt(200, seed=10 + seed)], PARAMS)[0]
            hits.append(output.num_cached_tokens)
            llm.generate([prompt(700, seed=20 + seed)], PARAMS)
        assert hits[0] == 0
        assert hits[-1] == len(beginning)


def test_the_reference_kernels_do_not_read_behind_windows_either(model, network, monkeypatch):
    monkeypatch.setenv("PAGODA_KERNELS", "reference")
    prompts = [prompt(LENGTH), prompt(60) + prompt(40, seed=1)]
    with make(model, num_pages=24) as llm:
        assert "reference" in llm.engine.kernels.name
        assert tokens([llm.generate([each], PARAMS)[0] for each in prompts]) == generated(network, prompts)
