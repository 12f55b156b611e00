"""Facts of a model from its files alone, and equality with those of the model once it is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType

from gguf_models import Unconfined, write_gguf
from models.checkpoints import edit, make_network, save
from oracle import families
from pagoda.errors import CorruptCheckpointError, ModelError, ModelNotFoundError, UnsupportedModelError
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.attention import ATTENTION_NAME
from pagoda.models.build import random_network
from pagoda.models.discovery import discover
from pagoda.models.generation import GenerationTokens
from pagoda.models.loader import load_model
from pagoda.models.model import Model
from pagoda.models.tiny import shrink
from pagoda.planning.checkpoint import facts_from_checkpoint, facts_from_config
from pagoda.planning.facts import MachineFacts
from planning.families import KNOWABLE

MACHINE = MachineFacts(1 << 30)
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}


@pytest.mark.parametrize("family", KNOWABLE)
def test_the_configuration_and_the_model_agree(family, monkeypatch):
    monkeypatch.setattr("pagoda.models.encoder.available_memory_nbytes", lambda: MACHINE.available_nbytes)
    config = shrink(families.default_config(family))
    network = random_network(config, ATTENTION_NAME)
    model = Model(network, discover(config), GenerationTokens.of({}, config))
    assert facts_from_config(config.to_dict(), MACHINE) == replace(model.facts, weight_nbytes=None)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
        (
            "phi3",
            {
                "hidden_size": 64,
                "original_max_position_embeddings": 64,
                "pad_token_id": 0,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
            },
        ),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "num_key_value_heads": 4}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_and_the_model_that_is_loaded_from_them_agree(tmp_path, family, settings, dtype):
    directory = save(make_network(family, dtype, **settings), tmp_path / "model")
    for wanted in ("auto", "float16"):
        assert facts_from_checkpoint(directory, MACHINE, wanted) == load_model(directory, dtype=wanted).facts


def test_the_facts_of_the_embedded_model():
    facts = facts_from_checkpoint(EMBEDDED_MODEL, MACHINE)
    assert (facts.dtype, facts.vocab_size, facts.max_model_len) == ("bfloat16", 4096, 4096)
    assert facts == load_model(EMBEDDED_MODEL).facts


def test_shards_are_added_up(tmp_path):
    network = make_network()
    whole = facts_from_checkpoint(save(network, tmp_path / "whole"), MACHINE)
    assert facts_from_checkpoint(save(network, tmp_path / "cut", max_shard_size="5KB"), MACHINE) == whole
    assert len([*(tmp_path / "cut").glob("*.safetensors")]) > 1


def test_a_type_that_is_not_stated_is_that_of_the_weights(tmp_path):
    directory = save(make_network(dtype=torch.bfloat16), tmp_path / "model")
    edit(directory / "config.json", dtype=None)
    assert facts_from_checkpoint(directory, MACHINE).dtype == "bfloat16"
    assert facts_from_config(LLAMA, MACHINE).dtype == "float32"
    assert facts_from_config(LLAMA | {"torch_dtype": "float16"}, MACHINE).dtype == "float16"


@pytest.mark.parametrize(
    ("changes", "longest", "asked_for"),
    [
        ({}, 4096, 4096),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 4096, 8192),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 4096, 4096),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 512}, 512, 4096),
        ({"max_position_embeddings": None}, None, None),
    ],
)
def test_lengths(changes, longest, asked_for):
    facts = facts_from_config(LLAMA | changes, MACHINE)
    assert (facts.max_model_len, facts.most_model_len) == (longest, asked_for)


def test_what_cannot_be_known_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="none of: vocab_size"):
        facts_from_config(LLAMA | {"vocab_size": None}, MACHINE)
    with pytest.raises(CorruptCheckpointError, match="has dtype 'int3'"):
        facts_from_config(LLAMA | {"dtype": "int3"}, MACHINE)
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        facts_from_checkpoint(tmp_path, MACHINE)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match=r"no \*\.safetensors file"):
        facts_from_checkpoint(tmp_path, MACHINE)


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": -5},
        {"num_hidden_layers": float("inf")},
        {"num_hidden_layers": "many"},
        {"num_attention_heads": "many"},
        {"text_config": "none"},
        {"text_config": {"num_hidden_layers": 10**12}},
        {"layer_types": 5},
        {"layer_types": [5]},
        {"rope_scaling": "none"},
        {"rope_scaling": {"type": "dynamic", "factor": "large"}},
        {"max_position_embeddings": "long"},
        {"per_layer_config": {"first": {}}},
        {"vocab_size": ["many"]},
        {"is_encoder_decoder": True, "encoder": {"relative_attention_num_buckets": 8}},
    ],
    ids=repr,
)
def test_nonsense_is_a_named_error_and_takes_no_memory(tmp_path, values):
    with pytest.raises(ModelError):
        facts_from_config(LLAMA | values, MACHINE)
    directory = save(make_network(), tmp_path / "model")
    edit(directory / "config.json", **values)
    with pytest.raises(ModelError):
        facts_from_checkpoint(directory, MACHINE)


@pytest.mark.parametrize(
    "architecture",
    ["gemma3", "llama", "nemotron", "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "starcoder2"],
)
def test_a_gguf_file_and_its_model_agree(tmp_path, monkeypatch, architecture):
    """Coded bytes and all. Some families have layers of a kind that is decoded."""
    monkeypatch.setattr("pagoda.checkpoint.gguf_description._confined", Unconfined)
    types = GGMLQuantizationType
    kind = lambda name: types.F32 if "_inp" in name else types.Q8_0  # noqa: E731 - routers are plain numbers
    file = write_gguf(tmp_path / "model.gguf", architecture, kind).file
    facts = facts_from_checkpoint(file, MACHINE)
    assert facts == load_model(file).facts
    assert facts.weight_nbytes < file.stat().st_size
