"""Small checkpoints on disk, and what somebody may do to them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pagoda.models.quiet import quiet

SETTINGS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_network(family: str = "llama", dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SETTINGS | settings)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def save(network: Any, directory: Path, **options: Any) -> Path:
    with quiet():
        network.save_pretrained(directory, **options)
    return directory


def edit(file: Path, **values: Any) -> None:
    """Change entries of a JSON object on disk."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


def write_pickle(file: Path, mark: Path) -> Path:
    """A pickle that makes the file `mark` when it is read."""
    file.write_bytes(pickle.dumps(Bomb(mark)))
    return file
