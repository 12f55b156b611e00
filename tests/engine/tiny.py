"""The model that most tests of the engine run: two layers of Llama whose answers end only when they must."""

from __future__ import annotations

from transformers import LlamaConfig

from pagoda.models.loader import Model, model_from_config

VOCABULARY = 200
CONTEXT = 512


def tiny_model() -> Model:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    return model_from_config(config, dtype="float32", seed=0)
