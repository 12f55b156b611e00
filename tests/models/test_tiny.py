"""Small configurations keep what decides which code runs."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from pagoda.models.quiet import quiet
from pagoda.models.selftest import tiny_network
from pagoda.models.tiny import shrink


def shrunk(family, **settings):
    with quiet():
        return shrink(AutoConfig.for_model(family, **settings))


@pytest.mark.parametrize(("heads", "kv_heads", "small"), [(32, 32, 4), (32, 8, 2), (32, 1, 1), (8, 2, 2)])
def test_grouping_of_heads_is_kept(heads, kv_heads, small):
    config = shrunk("llama", num_attention_heads=heads, num_key_value_heads=kv_heads)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, small)


def test_every_kind_of_layer_is_kept():
    assert shrunk("gemma3_text").layer_types == ["sliding_attention", "full_attention"]
    config = shrunk("exaone_moe")
    kinds = list(zip(config.layer_types, config.mlp_layer_types, strict=True))
    assert kinds == [("sliding_attention", "dense"), ("sliding_attention", "sparse"), ("full_attention", "sparse")]


def test_shared_caches_are_kept():
    config = shrunk("gemma3n_text")
    shared = config.num_kv_shared_layers
    assert config.layer_types[-shared:] == ["sliding_attention", "full_attention"]
    assert set(config.layer_types[:-shared]) == {"sliding_attention", "full_attention"}


def test_other_widths_of_single_layers_stay_other():
    config = shrunk("gemma4_text")
    widths = [config.per_layer_config[layer].head_dim for layer in range(2)]
    assert widths == [16, 32]


def test_a_window_or_scaling_sets_in_within_the_test():
    assert shrunk("mistral").sliding_window == 8
    assert shrunk("llama4_text").floor_scale == 8
    assert shrunk("ministral3").rope_parameters["original_max_position_embeddings"] == 20


def test_absent_parts_stay_absent():
    config = shrunk("deepseek_v3", q_lora_rank=None)
    assert config.q_lora_rank is None
    assert shrunk("mistral", sliding_window=None).sliding_window is None


def test_long_rope_factors_fit_the_narrow_heads():
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    config = shrunk("phi3", rope_parameters=rope, original_max_position_embeddings=4096)
    assert len(config.rope_parameters["short_factor"]) == 8
    tiny_network(config)


def test_the_original_is_left_alone():
    with quiet():
        config = AutoConfig.for_model("gemma3")
    before = config.to_dict()
    shrink(config)
    assert config.to_dict() == before
