"""Recurrent layers through the engine: no token changes, however a prompt is resumed, and hits are found."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from engine.greedy import NEW_TOKENS, generated, tokens
from oracle.families import build_tiny
from pagoda import LLM, RequestOutput, SamplingParams
from pagoda.errors import ConfigError
from pagoda.formats.page import page_geometries
from pagoda.formats.plain import FP32
from pagoda.formats.state import StateGeometry
from pagoda.models.model import Model

PAGE_TOKENS = 16
STEP_TOKENS = 48
PARAMS = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
LENGTH = 104
MIB = 1 << 20

# Selective scan beside attention, both in every layer, two delta rules, a short convolution, no attention at all.
FAMILIES = ("jamba", "falcon_h1", "qwen3_next", "kimi_linear", "lfm2", "mamba", "mamba2")


@pytest.fixture(scope="module", params=FAMILIES)
def network(request: pytest.FixtureRequest) -> Any:
    """Transformers' own model."""
    return build_tiny(request.param)


@pytest.fixture(scope="module")
def model(network: Any) -> Model:
    return Model.from_transformers(network)


def make(model: Model, nbytes: int = 64 * MIB, **options: Any) -> LLM:
    options = {"max_num_batched_tokens": STEP_TOKENS, "max_num_seqs": 4, **options}
    return LLM(model, block_size=PAGE_TOKENS, kv_cache_memory_bytes=nbytes, num_threads=1, **options)


def tight(model: Model, num_slots: int, num_pages: int) -> dict[str, Any]:
    """Memory for at most so many states, and pages."""
    pages = num_pages * sum(geometry.page_nbytes for geometry in page_geometries(model.spec, FP32, PAGE_TOKENS))
    nbytes = num_slots * StateGeometry(model.spec.states, 4).page_nbytes + pages
    return {"nbytes": nbytes, "max_num_seqs": num_slots, "snapshot_memory_share": 0}


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(64, 128, (length,), generator=generator).tolist()


def cached(outputs: list[RequestOutput]) -> list[int | None]:
    return [output.num_cached_tokens for output in outputs]


def test_the_same_tokens_wherever_a_prompt_is_resumed(model, network):
    """Prompts that leave one another around the borders of pages and steps, and then all of them again."""
    story = prompt(LENGTH)
    cuts = sorted({border + offset for border in (0, 16, 48, 96) for offset in (-1, 0, 1)} - {-1})
    prompts = [story, *(story[:cut] + prompt(20, seed=1000 + cut) for cut in cuts), story]
    expected = generated(network, prompts)
    with make(model) as llm:
        outputs = [llm.generate([each], PARAMS)[0] for each in prompts]
        again = [llm.generate([each], PARAMS)[0] for each in prompts]
        llm.check_integrity()
    assert tokens(outputs) == expected
    assert tokens(again) == expected
    assert cached(again) == [len(each) - 1 for each in prompts]


def test_the_same_tokens_beside_others(model, network):
    """Decode beside prefill, in chunks, with prompts of all lengths down to a single token."""
    prompts = [prompt(length, seed=length) for length in (70, 1, 33, 2, 100, 16, 17, 5)]
    with make(model) as llm:
        assert tokens(llm.generate(prompts, PARAMS)) == generated(network, prompts)
        llm.check_integrity()


def test_the_same_tokens_where_snapshots_are_evicted(model, network):
    story = prompt(LENGTH)
    prompts = [story[:cut] + prompt(20, seed=1000 + cut) for cut in (104, 60, 80, 17, 90, 60, 80, 104, 33, 80)]
    expected = generated(network, prompts)
    with make(model, **tight(model, num_slots=4, num_pages=20)) as llm:
        assert tokens(llm.generate(prompts, PARAMS)) == expected
        llm.check_integrity()
        assert tokens([llm.generate([each], PARAMS)[0] for each in prompts]) == expected
        llm.check_integrity()
        assert llm.cache_stats().evicted_pages > 0


def test_the_same_tokens_after_preemption(model, network):
    prompts = [prompt(30, seed=1), prompt(31, seed=2)]
    with make(model, **tight(model, num_slots=2, num_pages=5)) as llm:
        outputs = llm.generate(prompts, PARAMS)
        llm.check_integrity()
    assert tokens(outputs) == generated(network, prompts)
    # States do not grow: without pages nothing is preempted for want of any.
    assert any(output.metrics.num_preemptions for output in outputs) == bool(model.spec.groups)


def test_states_in_bf16_beside_pages_of_codes(network):
    """Part of each state stays in fp32; a hit gives what the cold run gave, and both are near transformers' own."""
    half = copy.deepcopy(network).bfloat16()
    config = GenerationConfig(
        max_new_tokens=1, do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    with torch.inference_mode():
        logits = half.generate(torch.tensor([prompt(70)]), generation_config=config).logits[0][0].float()
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=1)
    with make(Model.from_transformers(half), kv_cache_dtype="int8") as llm:
        cold, warm = (llm.generate([prompt(70)], params)[0] for _ in range(2))
    assert warm.num_cached_tokens == 69
    assert tokens([warm]) == tokens([cold])
    first = cold.outputs[0].logprobs[0]
    # Sixteen roundings to bf16, each within 2^-9 of the largest logit, all the same way.
    assert abs(first.logprob - float(logits.log_softmax(-1)[first.token_id])) <= 16 * 2.0**-9 * float(
        logits.abs().max()
    )


def test_forks_go_on_with_states_of_their_own(model, network):
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, n=3)
    with make(model) as llm:
        assert tokens(llm.generate([prompt(LENGTH)], params)) == generated(network, [prompt(LENGTH)]) * 3
        llm.check_integrity()


def test_a_conversation_goes_on_from_its_last_state(model):
    conversation = prompt(40)
    with make(model) as llm:
        known = 1
        for turn in range(3):
            output = llm.generate([conversation], PARAMS)[0]
            assert output.num_cached_tokens == known - 1  # the last token was drawn, not computed
            conversation = conversation + output.outputs[0].token_ids
            known = len(conversation)
            conversation = conversation + prompt(21, seed=turn)


def test_a_prefix_that_prompts_share_is_found_once_it_was_seen_twice(model):
    shared = prompt(100)
    with make(model) as llm:
        outputs = [llm.generate([shared + prompt(20, seed=seed)], PARAMS)[0] for seed in range(1, 5)]
    assert cached(outputs) == [0, 0, 96, 96]


def test_prompts_that_wait_together_compute_what_they_share_once(model, network):
    shared = prompt(100)
    prompts = [shared + prompt(20, seed=seed) for seed in range(1, 5)]
    with make(model) as llm:
        outputs = llm.generate(prompts, PARAMS)
    assert cached(outputs) == [0, 96, 96, 96]
    assert tokens(outputs) == generated(network, prompts)


def test_a_long_prompt_is_found_in_steps(model):
    story = prompt(LENGTH)
    with make(model, snapshot_interval_tokens=32) as llm:
        llm.generate([story], PARAMS)
        outputs = [llm.generate([story[:cut] + prompt(9, seed=cut)], PARAMS)[0] for cut in (100, 70, 31)]
    assert cached(outputs) == [96, 64, 0]


def test_nothing_is_found_without_prefix_caching(model, network):
    with make(model, enable_prefix_caching=False) as llm:
        outputs = [llm.generate([prompt(40)], PARAMS)[0] for _ in range(2)]
        assert llm.cache_stats().groups[-1].idle == 0
    assert cached(outputs) == [0, 0]
    assert tokens(outputs) == generated(network, [prompt(40)]) * 2


@pytest.mark.parametrize("states", [1.0, 1.5, 1.99])
def test_memory_that_holds_too_few_states_is_refused(model, states):
    with pytest.raises(ConfigError, match="recurrent states"):
        make(model, nbytes=int(states * StateGeometry(model.spec.states, 4).page_nbytes))


def test_states_leave_room_for_pages(model):
    with make(model, snapshot_memory_share=0.99) as llm:
        assert llm.engine.memory.nbytes <= 64 * MIB
        assert all(llm.engine.memory.num_pages)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"snapshot_memory_share": 1.0}, "less than 1"), ({"snapshot_interval_tokens": -1}, "must be positive")],
)
def test_impossible_settings_are_refused(model, options, reason):
    with pytest.raises(ConfigError, match=reason):
        make(model, **options)
