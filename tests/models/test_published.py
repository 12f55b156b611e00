"""Configurations as published: they pass every check at load, and the planner reads the same cache from the file alone.

Written down from their config.json: what decides the cache, the positions and the paths through the code.
"""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from pagoda.models.loader import examine
from pagoda.models.positions import max_positions
from pagoda.models.quiet import quiet
from pagoda.planning.lengths import longest, plain_lengths
from pagoda.planning.spec import spec_from_config
from pagoda.planning.text_config import text_config

LONG_FACTORS = {"short_factor": [1.0] * 48, "long_factor": [1.5] * 48}
PUBLISHED = {
    "Llama-3.1-8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "eos_token_id": [128001, 128008, 128009],
        "vocab_size": 128256,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    "Phi-4-mini": {
        "model_type": "phi3",
        "hidden_size": 3072,
        "num_hidden_layers": 32,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.75,
        "sliding_window": 262144,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "vocab_size": 200064,
        "pad_token_id": 199999,
        "rope_scaling": {"type": "longrope"} | LONG_FACTORS,
    },
    "gemma-2-2b": {
        "model_type": "gemma2",
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "max_position_embeddings": 8192,
    },
    "gemma-3-4b": {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        "vision_config": {"model_type": "siglip_vision_model", "num_hidden_layers": 27, "image_size": 896},
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "max_position_embeddings": 131072,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
    },
    "starcoder2-3b": {
        "model_type": "starcoder2",
        "hidden_size": 3072,
        "num_hidden_layers": 30,
        "num_attention_heads": 24,
        "num_key_value_heads": 2,
        "sliding_window": 4096,
        "max_position_embeddings": 16384,
    },
    "pythia-160m": {
        "model_type": "gpt_neox",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "rotary_pct": 0.25,
        "max_position_embeddings": 2048,
    },
}
# Bytes per token in 16 bits; the longest sequence.
FACTS = {
    "Llama-3.1-8B": (131072, 131072),
    "Qwen2.5-0.5B": (12288, 32768),
    "Qwen3-30B-A3B": (98304, 40960),
    "Phi-4-mini": (131072, 4096),
    "gemma-2-2b": (106496, 8192),
    "gemma-3-4b": (139264, 131072),
    "gpt-oss-20b": (49152, 131072),
    "starcoder2-3b": (30720, 16384),
    "pythia-160m": (36864, 2048),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_loads_and_plans(name):
    values = PUBLISHED[name]
    with quiet():
        config = AutoConfig.for_model(**values)
    found = examine(config)
    assert (found.spec.elements_per_token * 2, max_positions(config, 0)) == FACTS[name]
    assert spec_from_config(values) == found.spec
    assert longest(plain_lengths(text_config(values)), 0) == FACTS[name][1]
