"""generation_config.json: what `generate()` of transformers does with it is done, by default and no more than asked."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from oracle.families import build_tiny
from pagoda import LLM, SamplingParams
from pagoda.errors import ConfigError, CorruptCheckpointError
from pagoda.models.generation import GenerationTokens
from pagoda.models.model import Model

VOCABULARY, NEW_TOKENS = 64, 24
PROMPT = [5, 9, 5, 9, 7, 5, 9]


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.1,
        eos_token_id=3,
        bos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def checkpoint(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    network.save_pretrained(directory)
    return directory


@pytest.fixture
def load(checkpoint: Path) -> Any:
    def load(settings: dict[str, Any], **options: Any) -> LLM:
        (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": 3, **settings}))
        return LLM(checkpoint, kv_cache_memory_bytes=8 << 20, num_threads=1, **options)

    return load


def tokens(llm: LLM, params: SamplingParams | None = None) -> list[int]:
    return llm.generate([PROMPT], params, use_tqdm=False)[0].outputs[0].token_ids


def by_transformers(network: Any, settings: dict[str, Any], start: list[int] = PROMPT, **inputs: Any) -> list[int]:
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, **settings)
    ids = torch.tensor([start])
    with torch.inference_mode():
        given = {"input_ids": ids} if not inputs else {"decoder_input_ids": ids, **inputs}
        return network.generate(**given, generation_config=config)[0, len(start) :].tolist()


SETTINGS: list[dict[str, Any]] = [
    {},
    {"eos_token_id": [3, *range(20, 40)]},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"repetition_penalty": 1.5},
    {"eos_token_id": list(range(3, 60)), "min_length": 12},
    {"eos_token_id": list(range(3, 60)), "min_new_tokens": 4},
    {"forced_eos_token_id": 3},
    {"suppress_tokens": list(range(10, 40))},
    {"begin_suppress_tokens": list(range(10, 60))},
    {"no_repeat_ngram_size": 2, "forced_eos_token_id": 3, "min_length": 20, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "+".join(settings) or "none")
def test_greedy_tokens_are_those_of_generate(network: Any, load: Any, settings: dict[str, Any]) -> None:
    with load(settings | {"max_new_tokens": NEW_TOKENS, "do_sample": False}) as llm:
        assert tokens(llm) == by_transformers(network, {"eos_token_id": 3} | settings)


def test_bad_words_of_several_tokens_are_not_completed(network: Any, load: Any) -> None:
    first = by_transformers(network, {"eos_token_id": 3})
    settings = {"bad_words_ids": [first[:2], first[3:6], [first[8]], [*PROMPT[-1:], first[0]], [3]]}
    expected = by_transformers(network, {"eos_token_id": 3} | settings)
    assert expected != first
    with load(settings | {"max_new_tokens": NEW_TOKENS, "do_sample": False}) as llm:
        assert tokens(llm) == expected


@pytest.mark.parametrize(
    "settings", [{"forced_bos_token_id": 7}, {"bad_words_ids": [[5, token] for token in range(60)]}]
)
def test_what_follows_a_token_alone(network: Any, load: Any, settings: dict[str, Any]) -> None:
    expected = by_transformers(network, {"eos_token_id": 3} | settings, [5])
    assert expected != by_transformers(network, {"eos_token_id": 3}, [5])
    with load(settings | {"max_new_tokens": NEW_TOKENS, "do_sample": False}) as llm:
        assert llm.generate([[5]], use_tqdm=False)[0].outputs[0].token_ids == expected


def test_an_encoder_decoder_model_generates_as_it_says() -> None:
    network = build_tiny("bart")
    settings = {"no_repeat_ngram_size": 2, "forced_eos_token_id": 2, "repetition_penalty": 1.3, "eos_token_id": 2}
    network.generation_config = GenerationConfig(**settings, decoder_start_token_id=2, do_sample=False)
    read = [7, 8, 9, 10, 11]
    expected = by_transformers(network, settings, [2], input_ids=torch.tensor([read]))
    with LLM(Model.from_transformers(network), kv_cache_memory_bytes=8 << 20, num_threads=1) as llm:
        params = SamplingParams(temperature=0, repetition_penalty=1.3, max_tokens=NEW_TOKENS)
        assert llm.generate([read], params, use_tqdm=False)[0].outputs[0].token_ids == expected


def test_sampling_defaults_hold_for_who_says_nothing(load: Any) -> None:
    settings = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1}
    with load(settings | {"max_new_tokens": 5, "do_sample": True}) as llm:
        assert llm.get_default_sampling_params() == SamplingParams(**settings, max_tokens=5)
        assert len(tokens(llm)) <= 5
        assert len(tokens(llm, SamplingParams(max_tokens=9, ignore_eos=True))) == 9
    with load(settings, generation_config="vllm") as llm:
        assert llm.get_default_sampling_params() == SamplingParams()


def test_settings_of_another_directory(load: Any, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.25}')
    with load({"temperature": 0.5}, generation_config=str(tmp_path)) as llm:
        assert llm.get_default_sampling_params().temperature == 0.25
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(ConfigError, match="There is no generation_config"):
        load({}, generation_config=str(tmp_path))


def test_ends_are_united_and_known_to_the_model(load: Any) -> None:
    with load({"eos_token_id": [5, 4_000_000, -1]}) as llm:
        assert llm.engine.model.eos_token_ids == {3, 5}  # 3 is the configuration's
        last = VOCABULARY - 1
        params = SamplingParams(temperature=0, max_tokens=3, min_tokens=2, logit_bias={last: 100})
        assert tokens(llm, params) == [last] * 3


def test_the_default_end_of_a_family_counts_where_none_is_stated(network: Any) -> None:
    config = network.config  # of which 3 is the end, by default or not
    assert GenerationTokens.of({}, config, {}).end == {3}
    assert GenerationTokens.of({"eos_token_id": 5}, config, {}).end == {5}
    assert GenerationTokens.of({}, config, {"text_config": {"eos_token_id": [6, 7]}}).end == {6, 7}
    assert GenerationTokens.of({"eos_token_id": 5}, config, {"eos_token_id": 4}).end == {4, 5}
    assert GenerationTokens.of({"eos_token_id": 5}, config).end == {3, 5}


def test_the_end_of_the_tokenizer_ends_as_well() -> None:
    with LLM(kv_cache_memory_bytes=8 << 20, num_threads=1) as llm:
        end = llm.tokenizer.eos_token_id
        assert end in llm.engine.model.eos_token_ids


@pytest.mark.parametrize(
    "wrong",
    [
        {"eos_token_id": "x"},
        {"eos_token_id": 1.5},
        {"eos_token_id": True},
        {"eos_token_id": [[3]]},
        {"temperature": "hot"},
        {"temperature": -1},
        {"top_p": [1]},
        {"top_k": 1.5},
        {"max_new_tokens": "5"},
        {"do_sample": "yes"},
        {"bad_words_ids": [5]},
        {"bad_words_ids": [["a"]]},
        {"bad_words_ids": [[]]},
        {"no_repeat_ngram_size": "2"},
        {"min_length": -1},
        {"suppress_tokens": {"a": 1}},
        {"forced_eos_token_id": "x"},
    ],
    ids=str,
)
def test_values_of_no_sense_are_named(load: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(CorruptCheckpointError):
        load(wrong)


def test_what_cannot_be_done_is_named_at_load(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load({"num_beams": 4, "penalty_alpha": 0.6, "length_penalty": 2.0, "guidance_scale": 1.0}).close()
    named = [record.getMessage() for record in caplog.records if "generation settings" in record.getMessage()]
    assert len(named) == 1
    assert "num_beams=4" in named[0]
    assert "penalty_alpha=0.6" in named[0]
    assert "guidance_scale" not in named[0]


def test_words_beyond_the_vocabulary_forbid_nothing(network: Any) -> None:
    found = GenerationTokens.of({"bad_words_ids": [[5, 9999], [9999]], "suppress_tokens": [-1, 9999]}, network.config)
    assert not found.rules.bad_words
    assert not found.banned
