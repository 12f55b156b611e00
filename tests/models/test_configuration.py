"""A config.json decides what is computed, and neither what is read nor what code runs."""

from __future__ import annotations

import json

import pytest

from models.checkpoints import SETTINGS, edit, make_network, save
from pagoda.checkpoint.configuration import read_config
from pagoda.errors import CorruptCheckpointError, ModelError, UnsupportedModelError
from pagoda.models.loader import load_config, load_model


@pytest.fixture
def checkpoint(tmp_path):
    return save(make_network(), tmp_path / "model")


def test_entries_that_steer_transformers_are_left_out(checkpoint, tmp_path):
    (tmp_path / "elsewhere.json").write_text(json.dumps({"model_type": "gpt2"}))
    edit(
        checkpoint / "config.json",
        auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
        configuration_files=["config.9.0.0.json", "../elsewhere.json"],
        attn_implementation="someone/kernels",
        experts_implementation="someone/kernels",
        _attn_implementation_internal="someone/kernels",
        fusion_config={"anything": True},
        kernel_config={"RMSNorm": "someone/kernels:RMSNorm"},
        name_or_path="someone/else",
        return_dict=False,
        output_attentions=True,
        torchscript=True,
    )
    config = load_model(checkpoint).config
    assert config.model_type == "llama"
    assert not {*config.to_dict()} & {"auto_map", "fusion_config", "kernel_config", "configuration_files"}
    assert config.return_dict is True


def test_they_are_left_out_of_parts_too(tmp_path):
    part = SETTINGS | {"model_type": "llama", "attn_implementation": "x", "auto_map": {"AutoConfig": "y"}}
    values = {"model_type": "got_ocr2", "text_config": part, "vision_config": {"experts_implementation": "z"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = load_config(tmp_path)
    assert config.text_config.hidden_size == SETTINGS["hidden_size"]
    assert "auto_map" not in config.text_config.to_dict()
    assert config.text_config._attn_implementation is None
    assert config.vision_config._experts_implementation is None


def test_weights_that_only_a_part_says_are_quantised(checkpoint):
    edit(checkpoint / "config.json", text_config={"quantization_config": {"quant_method": "hqq"}})
    with pytest.raises(UnsupportedModelError, match=r"quantised \(hqq\)"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    "values",
    [
        {"to_dict": 5},
        {"get_text_config": "x"},
        {"__class__": "x"},
        {"__dict__": {}},
        {"dtype": "load"},
        {"dtype": "int8"},
        {"dtype": 7},
        {"hidden_act": "nothing"},
        {"hidden_act": ["silu"]},
        {"rope_parameters": 5},
        {"rope_parameters": {"rope_type": "nothing"}},
        {"rope_parameters": {"rope_type": "longrope", "factor": 0}},
        {"num_attention_heads": 0},
        {"num_key_value_heads": -1},
        {"num_key_value_heads": 3},
        {"hidden_size": 0},
        {"vocab_size": None},
        {"rms_norm_eps": "x"},
        {"model_type": ["llama"]},
        {"model_type": None},
        {"is_encoder_decoder": True},
        {"per_layer_config": {"0": {"hidden_size": "x"}}},
        {"quantization_config": 5},
        {"layer_types": [["full_attention"]] * 2},
    ],
    ids=repr,
)
def test_nonsense_is_named(checkpoint, values):
    edit(checkpoint / "config.json", **values)
    with pytest.raises(ModelError) as caught:
        load_model(checkpoint)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, b"\xff\xfe", '{"a": 1' + "0" * 9999 + "}"]
)
def test_what_no_parser_reads(checkpoint, text):
    (checkpoint / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CorruptCheckpointError, match=r"config\.json"):
        read_config(checkpoint)


def test_a_file_that_is_far_too_large(checkpoint):
    (checkpoint / "config.json").write_text('{"a": "' + "x" * (5 << 20) + '"}')
    with pytest.raises(CorruptCheckpointError, match="more than 4194304 bytes"):
        load_model(checkpoint)


def test_special_numbers_are_read_as_transformers_writes_them(checkpoint):
    edit(checkpoint / "config.json", something={"__float__": "Infinity"})
    assert load_config(checkpoint).something == float("inf")
