"""A model that writes what it is told to."""

from __future__ import annotations

import torch
from transformers import AutoTokenizer, LlamaConfig

from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.loader import Model, model_from_config


def scripted_model(text: str) -> Model:
    """A model with the embedded one's vocabulary that answers `text`, of which no token may come twice, and ends.

    Each token says which comes next, after any other one it is the first. Where a form does not allow that one, strings
    end at once.
    """
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    script = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    assert len(set(script)) == len(script), "a token comes twice"
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
    )
    assert len(script) <= config.hidden_size, "the text is too long"
    model = model_from_config(config)
    state = model.network.state_dict()
    with torch.no_grad():
        for name, weight in state.items():
            if not name.endswith("norm.weight"):
                weight.zero_()
        embeddings, logits = state["model.embed_tokens.weight"], state["lm_head.weight"]
        embeddings[:, 0] = 1
        for place, token in enumerate(script[:-1], start=1):
            embeddings[token, 0], embeddings[token, place] = 0, 1
        for place, token in enumerate(script):
            logits[token, place] = 100
        logits[tokenizer.convert_tokens_to_ids('"')] += 50
    return model
