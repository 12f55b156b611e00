"""Rotary embeddings whose frequencies depend on the length: fixed for the one that is asked for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PreTrainedConfig

from pagoda import LLM, SamplingParams
from pagoda.errors import ConfigError, PromptTooLongError
from pagoda.models.loader import model_from_config
from pagoda.models.model import Model

ORIGINAL, LONGEST = 64, 256
ROPES: dict[str, dict[str, Any]] = {
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0, 1.5] * 4,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
}


def config_of(kind: str) -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        max_position_embeddings=LONGEST if kind == "longrope" else ORIGINAL,
        rope_parameters=ROPES[kind],
        eos_token_id=None,
    )


@pytest.fixture(params=ROPES)
def model(request: pytest.FixtureRequest) -> Model:
    return model_from_config(config_of(request.param))


def make(model: Model, max_model_len: int | None) -> LLM:
    return LLM(model, max_model_len=max_model_len, kv_cache_memory_bytes=8 << 20, num_threads=1)


def last_token(network: Any, prompt: list[int]) -> int:
    """What transformers' own forward of a whole sequence goes on with."""
    with torch.inference_mode():
        return int(network(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1].argmax())


def prompt(length: int) -> list[int]:
    return torch.randint(0, 200, (length,), generator=torch.Generator().manual_seed(length)).tolist()


@pytest.fixture
def network(model: Model) -> Any:
    """The same weights with transformers' own attention, and its own ideas of lengths."""
    network = copy.deepcopy(model.network)
    network.set_attn_implementation("eager")
    return network


@pytest.mark.parametrize("length", [70, 129, LONGEST])
def test_beyond_the_original_length_as_transformers_for_a_sequence_so_long(
    model: Model, network: Any, length: int
) -> None:
    with make(model, length) as llm:
        assert llm.engine.max_model_len == length
        got = llm.generate([prompt(length - 1)], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    # The last position decides, which is beside the token that comes of it.
    whole = [*prompt(length - 1), got[0].outputs[0].token_ids[0]]
    with torch.inference_mode():
        logits = network(input_ids=torch.tensor([whole]), use_cache=False).logits[0, -2]
    assert got[0].outputs[0].token_ids == [int(logits.argmax())]


def test_short_prompts_are_rotated_like_long_ones(model: Model) -> None:
    """So that pages hold for both, whoever runs beside."""
    params = SamplingParams(temperature=0, max_tokens=4)
    with make(model, LONGEST) as llm:
        alone = llm.generate([prompt(20)], params, use_tqdm=False)[0].outputs[0].token_ids
        llm.reset_prefix_cache()
        beside = llm.generate([prompt(200), prompt(20)], params, use_tqdm=False)[1].outputs[0].token_ids
        again = llm.generate([prompt(20)], params, use_tqdm=False)[0]
    assert alone == beside == again.outputs[0].token_ids
    assert again.num_cached_tokens == 19


@pytest.mark.parametrize("asked", [None, 40, ORIGINAL])
def test_up_to_the_original_length_nothing_is_stretched(model: Model, network: Any, asked: int | None) -> None:
    with make(model, asked) as llm:
        assert llm.engine.max_model_len == (asked or ORIGINAL)
        got = llm.generate([prompt(30)], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    assert got[0].outputs[0].token_ids == [last_token(network, prompt(30))]


def test_more_than_the_model_takes_is_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match=f"max_model_len is {LONGEST + 1} and the model takes at most {LONGEST}"):
        make(model, LONGEST + 1)


def test_what_is_too_long_says_what_can_be_done(model: Model) -> None:
    with make(model, None) as llm, pytest.raises(PromptTooLongError, match="raise max_model_len"):
        llm.generate([prompt(100)], use_tqdm=False)


def test_the_longest_says_nothing_that_cannot_help(model: Model) -> None:
    with make(model, LONGEST) as llm, pytest.raises(PromptTooLongError) as refused:
        llm.generate([prompt(300)], use_tqdm=False)
    assert "raise max_model_len" not in str(refused.value)


def test_two_lengths_need_two_models(model: Model) -> None:
    with make(model, None), pytest.raises(ConfigError, match="load the model anew"):
        make(model, LONGEST)
