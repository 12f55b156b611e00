"""Tiny models, random but the same every time, that plain Hugging Face code runs."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=2)).eval()


def qwen2() -> Any:
    torch.manual_seed(1)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, num_hidden_layers=2)).eval().to(torch.bfloat16)


def gemma3() -> Any:
    """Windows of 8 tokens in every other layer."""
    torch.manual_seed(2)
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**SIZES, head_dim=16, num_hidden_layers=2, sliding_window=8, layer_types=kinds)
    return Gemma3ForCausalLM(config).eval()


MODELS = {"llama": llama, "qwen2": qwen2, "gemma3": gemma3}
