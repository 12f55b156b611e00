"""Configurations that no model has: each is refused, and the message names the field."""

from __future__ import annotations

from typing import Any

import pytest

from oracle import families
from pagoda.analysis.catalog import Shape, shapes
from pagoda.errors import CorruptCheckpointError
from pagoda.planning.contradictions import check_sizes
from planning.families import KNOWABLE

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
}
FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"num_attention_heads": -8}, "num_attention_heads -8"),
        ({"num_key_value_heads": -2}, "num_key_value_heads -2"),
        ({"num_key_value_heads": 0}, "num_key_value_heads 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3, which does not divide 8 heads of queries"),
        ({"num_key_value_heads": 16}, "num_key_value_heads 16, which does not divide"),
        ({"sliding_window": -1}, "sliding_window -1"),
        ({"sliding_window": "4096"}, "sliding_window '4096'"),
        ({"sliding_window": 10**12}, "sliding_window 1000000000000, more than any model has"),
        ({"max_position_embeddings": -5}, "max_position_embeddings -5"),
        ({"max_position_embeddings": 10**30}, "max_position_embeddings 10+, more than any model has"),
        ({"max_position_embeddings": float("inf")}, "max_position_embeddings inf"),
        ({"max_sequence_length": -1}, "max_sequence_length -1, which is negative"),
        ({"hidden_size": 10**15}, "hidden_size 10+, more than any model has"),
        ({"hidden_size": 64.5}, r"hidden_size 64\.5"),
        ({"num_hidden_layers": True}, "num_hidden_layers True"),
        ({"num_hidden_layers": float("nan")}, "num_hidden_layers nan"),
        ({"head_dim": 0}, "head_dim 0"),
        ({"layer_types": [FULL] * 3}, "layer_types of 3 layers, and 4 layers"),
        ({"layer_types": [FULL] * 5}, "layer_types of 5 layers, and 4 layers"),
        ({"layer_types": FULL}, "layer_types 'full_attention'"),
        ({"layer_types": [SLIDING] * 4, "sliding_window": 0}, "no sliding_window"),
        ({"hybrid_override_pattern": "M*M"}, "hybrid_override_pattern of 3 layers"),
        ({"no_rope_layers": [1, 1]}, "no_rope_layers"),
        ({"sliding_window_pattern": "LLLG"}, "sliding_window_pattern 'LLLG'"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern 0"),
        ({"num_experts": 8, "num_experts_per_tok": 9}, "num_experts_per_tok 9 of 8 experts"),
        ({"num_local_experts": 8, "num_experts_per_tok": 0}, "num_experts_per_tok 0 of 8 experts"),
        ({"num_experts": "128"}, "num_experts '128'"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step 0"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings 'false'"),
        ({"quantization_config": "awq"}, "quantization_config 'awq'"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"text_config": [1]}, "text_config"),
        ({"model_type": ["llama"]}, "model_type"),
    ],
    ids=repr,
)
def test_the_field_that_cannot_be_is_named(values: dict[str, Any], field: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=f"config.json has .*{field}"):
        check_sizes(LLAMA | values, "config.json")
    if "text_config" not in values:
        with pytest.raises(CorruptCheckpointError, match=field):
            check_sizes({"model_type": "llava", "text_config": LLAMA | values}, "config.json")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"sliding_window": None, "max_position_embeddings": None},
        {"sliding_window": 0},
        {"num_experts": 0, "num_experts_per_tok": 0},
        {"layer_types": [FULL, SLIDING] * 2, "sliding_window": 8, "sliding_window_pattern": "LG"},
        {"quantization_config": {"group_size": -1}, "tie_word_embeddings": True},
        {"model_type": "deepseek_v3", "kv_lora_rank": 16, "num_key_value_heads": 3},
        {"moe_layer_freq": [0, 1, 1, 1], "intermediate_size": [8, 8, 8, 8]},
        {"position_embedding_type": "absolute", "embd_pdrop": 0.1},
    ],
    ids=repr,
)
def test_what_is_unusual_passes(values: dict[str, Any]) -> None:
    check_sizes(LLAMA | values, "config.json")


@pytest.mark.parametrize("family", KNOWABLE)
def test_families_of_transformers_pass(family: str) -> None:
    check_sizes(families.default_config(family).to_dict(), family)


@pytest.mark.parametrize("shape", shapes(), ids=lambda shape: shape.name)
def test_configurations_that_come_with_the_package_pass(shape: Shape) -> None:
    check_sizes(shape.config(), shape.name)
