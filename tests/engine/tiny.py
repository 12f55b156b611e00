"""Models that tests of the engine run, whose answers end only when they must: most of them two layers of Llama."""

from __future__ import annotations

from typing import Any

from transformers import Gemma2Config, LlamaConfig

from pagoda import LLM
from pagoda.config import EngineConfig
from pagoda.engine.engine import Engine
from pagoda.kernels.dispatch import choose_kernels
from pagoda.models.loader import Model, model_from_config

VOCABULARY = 200
CONTEXT = 512
PAGE_TOKENS = 16
POOL_NBYTES = 4 << 20


def tiny_config() -> LlamaConfig:
    return LlamaConfig(
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


def tiny_model() -> Model:
    return model_from_config(tiny_config(), dtype="float32", seed=0)


def windowed_model(dtype: str) -> Model:
    """Layers alternate between windows of 8 tokens and none."""
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=8,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    return model_from_config(config, dtype=dtype, seed=0)


def make_llm(model: Model, **options: Any) -> LLM:
    """Without a tokenizer, over small pages."""
    pages = {"kv_cache_memory_bytes": POOL_NBYTES, "block_size": PAGE_TOKENS}
    return LLM(model, skip_tokenizer_init=True, **{**pages, **options})


def make_engine(model: Model, **options: Any) -> Engine:
    """The same without what stands around it."""
    config = EngineConfig(**{"kv_cache_memory_bytes": POOL_NBYTES, "block_size": PAGE_TOKENS, **options})
    return Engine(model, choose_kernels(config.environment, config.deterministic), config)
