"""Well-known model shapes, for measuring a machine without downloading a checkpoint.

Each is what the family's config.json says; the weights are random, so times are right and text is not.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pagoda.errors import ConfigError
from pagoda.models.loader import load_config

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
    },
}


def shape_config(name: str) -> Any:
    """The transformers configuration of a built-in shape, or of the config.json that `name` is the path of."""
    if name in SHAPES:
        with TemporaryDirectory() as directory:
            file = Path(directory) / "config.json"
            file.write_text(json.dumps(SHAPES[name]), encoding="utf-8")
            return load_config(file.parent)
    path = Path(name).expanduser()
    if path.name != "config.json":
        raise ConfigError(f"{name!r} is neither a config.json nor a built-in shape; those are: {', '.join(SHAPES)}.")
    return load_config(path.parent)
