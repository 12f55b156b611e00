"""Configurations that cannot be those of the weights are refused before anything is built; all others pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.checkpoints import edit, make_network, save
from oracle.families import build_tiny, default_config
from pagoda.checkpoint.plausible import check_values
from pagoda.checkpoint.weights import Outline
from pagoda.errors import CorruptCheckpointError
from pagoda.models.build import build_network
from pagoda.models.loader import load_model
from pagoda.models.plausible import FewCalls, fitting
from pagoda.models.quiet import quiet

FILE = Path("config.json")
SMALL = Outline(num_tensors=21, num_elements=20_000, largest_size=64, largest_number=1)


@pytest.fixture
def checkpoint(tmp_path):
    return save(make_network(), tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10_000_000},
        {"num_hidden_layers": 1e7},
        {"num_hidden_layers": float("inf")},
        {"num_hidden_layers": float("nan")},
        {"num_hidden_layers": 3000},
        {"num_labels": 1_000_000_000},
        {"vocab_size": 1_000_000_000},
        {"max_position_embeddings": 10**12},
        {"num_experts": 10**6},
        {"num_attention_heads": 10**9},
        {"pretraining_tp": 10**9},
        {"chunk_size": 10**6},
        {"mamba_chunk_size": 10**6},
        {"eos_token_id": [2] * 1_000_000},
        {"eos_token_id": list(range(100_000))},
        {"layer_types": ["full_attention"] * 100_000},
        {"id2label": {str(i): "label" for i in range(100_000)}},
        {"intermediate_size": [48, 10**9]},
        {"text_config": {"num_hidden_layers": 10**7}},
        {"rope_parameters": {"long_factor": [1.0] * 100_000}},
        {"anything": [{"num_hidden_layers": 10**7}]},
    ],
)
def test_numbers_that_do_not_fit_the_weights(checkpoint, values):
    edit(checkpoint / "config.json", **values)
    with pytest.raises(CorruptCheckpointError, match=r"which does not fit its weights|more than any"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 800_000},
        {"head_dim": 1 << 20},
        {"vocab_size": 1 << 20, "hidden_size": 1024},
        {"num_hidden_layers": 256, "intermediate_size": 1 << 20},
    ],
)
def test_networks_that_are_larger_than_the_weights(checkpoint, values):
    edit(checkpoint / "config.json", **values)
    with pytest.raises(CorruptCheckpointError, match=r"wrong shape|describes a network of"):
        load_model(checkpoint)


def test_a_convolution_that_is_wider_than_the_weights(tmp_path):
    save(build_tiny("mamba2"), tmp_path)
    edit(tmp_path / "config.json", conv_kernel=500)
    with pytest.raises(CorruptCheckpointError, match=r"conv1d\.weight .* instead of"):
        load_model(tmp_path)


def test_tables_that_are_larger_than_the_weights():
    config = default_config("gpt_neo")
    config.max_position_embeddings = 1 << 16  # a mask of all positions by all positions in every layer
    weights = Outline(num_tensors=300, num_elements=1 << 30, largest_size=1 << 16, largest_number=24)
    with quiet(), torch.device("meta"), pytest.raises(CorruptCheckpointError, match="tables of"):
        fitting(weights, FILE)(config)


def test_a_network_of_many_small_parts_is_not_built_to_its_end():
    config = make_network().config
    config.num_hidden_layers = 20_000
    with quiet(), torch.device("meta"), FewCalls(SMALL, FILE), pytest.raises(CorruptCheckpointError, match="parts"):
        build_network(config)


def test_a_network_that_runs_in_circles_is_not_run_to_its_end(tmp_path):
    save(build_tiny("hrm_text"), tmp_path)
    edit(tmp_path / "config.json", H_cycles=4000, L_cycles=4000)
    with pytest.raises(CorruptCheckpointError, match="many more parts"):
        load_model(tmp_path)


def test_numbers_without_a_limit(checkpoint):
    extra = {
        "rope_theta": 3_580_165_449,
        "num_parameters": 7 * 10**9,
        "sampling_rate": 48_000,
        "image_token_id": 10**6,
        "trained_at": 1_700_000_000,
    }
    edit(checkpoint / "config.json", **extra, max_position_embeddings=10_485_760, num_labels=1000)
    assert load_model(checkpoint).max_model_len == 10_485_760


@pytest.mark.parametrize(
    "family", ["llama", "deepseek_v3", "gemma3", "gpt2", "jamba", "mamba2", "qwen3_moe", "whisper", "xglm", "zamba2"]
)
def test_what_is_right_passes(family):
    """At full size: layers that share weights, experts in one tensor, tables, encoders, parts that see and hear."""
    config = default_config(family)
    with quiet(), torch.device("meta"):
        network = build_network(config, dtype=torch.bfloat16)
        outline = Outline.of({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
        with FewCalls(outline, FILE):
            fitting(outline, FILE)(config)
    check_values(json.loads(config.to_json_string(use_diff=False)), outline, FILE)
