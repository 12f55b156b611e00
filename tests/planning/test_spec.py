"""The cache read from config.json alone: known sizes, old and new spellings, and equality with the model itself."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from oracle import families
from pagoda.errors import UnsupportedModelError
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import Reach
from pagoda.models.tiny import shrink
from pagoda.planning.known_families import KNOWN_FAMILIES
from pagoda.planning.spec import UNKNOWABLE, spec_from_config
from pagoda.planning.text_config import text_config
from planning.families import KNOWABLE

FULL, SLIDING, CHUNKED = Reach.FULL, Reach.SLIDING, Reach.CHUNKED
LLAMA = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA_3_70B = LLAMA | {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}


def test_llama_3_70b_in_fp16_is_327680_bytes_per_token():
    assert spec_from_config(LLAMA_3_70B).elements_per_token * 2 == 327_680


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (LLAMA, AttentionLayout(32, 128, 128)),
        (LLAMA | {"num_key_value_heads": 8}, AttentionLayout(8, 128, 128)),
        (LLAMA | {"num_key_value_heads": 1}, AttentionLayout(1, 128, 128)),
        (LLAMA | {"head_dim": 64}, AttentionLayout(32, 64, 64)),
        ({"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768}, AttentionLayout(12, 64, 64)),
        (
            {"model_type": "gpt_bigcode", "n_layer": 2, "n_head": 48, "n_embd": 6144, "multi_query": True},
            AttentionLayout(1, 128, 128),
        ),
    ],
)
def test_heads_and_widths(config, layout):
    (group,) = spec_from_config(config).groups
    assert set(group.layouts) == {layout}
    assert group.reach is FULL


def with_window(family, **values):
    return LLAMA | {"model_type": family, "sliding_window": 100, "num_hidden_layers": 12} | values


@pytest.mark.parametrize(
    ("config", "groups"),
    [
        (with_window("mistral"), {(SLIDING, 100): 12}),
        (with_window("mistral", sliding_window=None), {(FULL, None): 12}),
        (with_window("qwen2", use_sliding_window=False, max_window_layers=4), {(FULL, None): 12}),
        (with_window("qwen2", use_sliding_window=True, max_window_layers=4), {(FULL, None): 4, (SLIDING, 100): 8}),
        (with_window("gemma2"), {(SLIDING, 100): 6, (FULL, None): 6}),
        (with_window("gemma3_text", sliding_window_pattern=6), {(SLIDING, 100): 10, (FULL, None): 2}),
        (with_window("cohere2", sliding_window_pattern=4), {(SLIDING, 100): 9, (FULL, None): 3}),
        (with_window("gpt_oss"), {(SLIDING, 100): 6, (FULL, None): 6}),
        (
            with_window("llama4_text", attention_chunk_size=64, no_rope_layers=[1, 1, 1, 0] * 3),
            {(CHUNKED, 64): 9, (FULL, None): 3},
        ),
        (with_window("llama4_text", no_rope_layers=[]), {(CHUNKED, 8192): 9, (FULL, None): 3}),
        (with_window("llama4_text", no_rope_layer_interval=6), {(CHUNKED, 8192): 10, (FULL, None): 2}),
        (
            with_window("gpt_neo", sliding_window=None, window_size=64, attention_types=[[["global", "local"], 6]]),
            {(FULL, None): 6, (SLIDING, 64): 6},
        ),
        (
            with_window("new_family", layer_types=["sliding_attention"] * 11 + ["full_attention"]),
            {(SLIDING, 100): 11, (FULL, None): 1},
        ),
    ],
)
def test_windows_and_chunks(config, groups):
    spec = spec_from_config(config)
    assert {(group.reach, group.span): len(group.layouts) for group in spec.groups} == groups


def test_the_text_part_of_a_larger_configuration_counts():
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 34}}
    config["text_config"] |= {"hidden_size": 2560, "sliding_window": 1024}
    spec = spec_from_config(config)
    assert [(group.span, len(group.layouts)) for group in spec.groups] == [(1024, 29), (None, 5)]
    assert set(spec.groups[0].layouts) == {AttentionLayout(4, 256, 256)}


def test_encoder_and_decoder_are_counted_apart():
    """T5-base and Whisper-large-v3 in bf16: keys and values of a token in all layers."""
    t5 = {"model_type": "t5", "is_encoder_decoder": True, "d_model": 768, "num_heads": 12, "d_kv": 64, "num_layers": 12}
    spec = spec_from_config(t5)
    assert spec.elements_per_token * 2 == spec.elements_per_encoder_token * 2 == 2 * 12 * 768 * 2
    whisper = {"model_type": "whisper", "is_encoder_decoder": True, "d_model": 1280, "encoder_layers": 32}
    whisper |= {"decoder_layers": 4, "decoder_attention_heads": 20}
    spec = spec_from_config(whisper)
    assert [group.reach for group in spec.groups] == [FULL, Reach.ENCODER]
    assert spec.elements_per_encoder_token * 2 == 2 * 4 * 1280 * 2


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LLAMA | {"kv_lora_rank": 512}, "latents"),
        (LLAMA | {"layer_types": ["linear_attention"] * 32}, "recurrent layers of a kind that is not known"),
        (LLAMA | {"layer_types": ["indexed_attention"] * 32}, "layers of kind indexed_attention"),
        (LLAMA | {"sliding_window": 10}, "does not say which layers"),
        (LLAMA | {"num_attention_heads": None}, "none of: num_attention_heads"),
        (LLAMA | {"model_type": "diffllama"}, "attends twice"),
        (LLAMA | {"attn_type_list": [0] * 31 + [1]}, "attn_type_list says that its layers differ"),
        (LLAMA | {"block_types": ["recurrent", "attention"]}, "block_types says that its layers differ"),
        (LLAMA | {"attention_window_size": 2048}, "attention_window_size says"),
        (LLAMA | {"block_configs": [], "num_key_value_heads": None}, "block_configs says"),
        (LLAMA | {"use_cla": True}, "use_cla says"),
        (LLAMA | {"full_attention_interval": 4}, "full_attention_interval says"),
        (LLAMA | {"num_attention_groups": 1}, "num_attention_groups says how heads are shared"),
        (LLAMA | {"multi_query_group_num": 2}, "multi_query_group_num says how heads are shared"),
        (LLAMA | {"num_key_value_heads": [8] * 32}, "num_key_value_heads is a list"),
        (LLAMA | {"sliding_window": [512, None] * 16}, "sliding_window is a list"),
    ],
)
def test_what_cannot_be_known_is_refused(config, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        spec_from_config(config)


def test_what_says_that_layers_do_not_differ_is_no_reason_to_refuse():
    for same in (
        {"attn_type_list": [1] * 32},
        {"use_cla": False},
        {"block_configs": None},
        {"num_attention_groups": 8},
    ):
        assert spec_from_config(LLAMA | {"num_key_value_heads": 8} | same).groups[0].layouts[0].planes[0].num_heads == 8
    stated = LLAMA | {"attn_type_list": [0] * 32, "layer_types": ["full_attention"] * 32}
    assert len(spec_from_config(stated).groups[0].layouts) == 32


def test_known_are_the_families_that_are_discovered():
    found = {text_config(families.default_config(family).to_dict())["model_type"] for family in KNOWABLE}
    assert found == KNOWN_FAMILIES


@pytest.mark.parametrize("interval", [None, 2])
def test_an_empty_list_of_rotary_layers_is_what_transformers_takes_it_for(interval):
    said = {"model_type": "llama4_text", "num_hidden_layers": 8, "hidden_size": 64, "num_attention_heads": 4}
    said |= {"no_rope_layers": [], "num_key_value_heads": 2, "head_dim": 16}
    said |= {"no_rope_layer_interval": interval} if interval else {}
    assert spec_from_config(said) == spec_from_config(AutoConfig.for_model(**said).to_dict())


@pytest.mark.parametrize("family", sorted(UNKNOWABLE))
def test_the_other_families_are_refused_and_not_guessed(family):
    with pytest.raises(UnsupportedModelError):
        spec_from_config(shrink(families.default_config(family)).to_dict())
