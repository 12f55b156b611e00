"""The part of a config.json that is about the layers which generate text, with what its family leaves unsaid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pagoda.errors import UnsupportedModelError
from pagoda.planning.known_families import SAME_AS

Sizes = Mapping[str, Any]

# What published checkpoints of a family leave to its defaults.
UNSAID = {
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256},
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    },
    "llama4_text": {"attention_chunk_size": 8192, "no_rope_layer_interval": 4},
}


def text_config(config: Sizes) -> Sizes:
    """The decoder's part, where a configuration has several."""
    text = config.get("text_config") or config
    if config.get("is_encoder_decoder"):
        text = config["decoder"] if isinstance(config.get("decoder"), dict) else _decoder_names(config)
    family = text.get("model_type", "")
    same = {"model_type": SAME_AS[family]} if family in SAME_AS else {}
    return UNSAID.get(family, {}) | (text.get("attn_config") or {}) | dict(text) | same


def quantization(config: Sizes) -> Sizes:
    """How weights are published in fewer bits: nothing of it if they are not."""
    return text_config(config).get("quantization_config") or config.get("quantization_config") or {}


def first(sizes: Sizes, *names: str) -> int:
    """The size under the first of `names` that the configuration has."""
    for name in names:
        if sizes.get(name):
            return int(sizes[name])
    raise UnsupportedModelError(f"config.json of {sizes.get('model_type')} has none of: {', '.join(names)}.")


@contextmanager
def named_fields(config: Sizes) -> Iterator[None]:
    """Inside of it a field that `config` lacks is an error that names it."""
    try:
        yield
    except KeyError as error:
        raise UnsupportedModelError(f"config.json of {config.get('model_type')} has no {error.args[0]}.") from error


def _decoder_names(config: Sizes) -> Sizes:
    """A configuration that tells of encoder and decoder side by side, with the decoder's sizes under plain names."""
    found = {
        "num_hidden_layers": config.get("decoder_layers")
        or config.get("num_decoder_layers")
        or config.get("num_layers"),
        "num_attention_heads": config.get("decoder_attention_heads") or config.get("num_heads"),
        "head_dim": config.get("d_kv"),
    }
    return dict(config) | found
