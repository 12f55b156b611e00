"""Checkpoints of every supported shape load and compute; broken ones are named errors."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig
from transformers.utils import logging

from models.checkpoints import edit, make_network, save
from pagoda.errors import ConfigError, CorruptCheckpointError, ModelNotFoundError, UnsupportedModelError
from pagoda.models.loader import load_model, model_from_config
from pagoda.models.selftest import SEQUENCE_TOKENS, PagedRun


@pytest.fixture
def checkpoint(tmp_path):
    return save(make_network(), tmp_path)


def prompts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 64, (length,), generator=generator) for length in SEQUENCE_TOKENS]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "8KB"}], ids=["single", "sharded"])
def test_weights_of_every_shape_give_the_same_logits(tmp_path, tied, options):
    network = make_network(tie_word_embeddings=tied)
    save(network, tmp_path, **options)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == bool(options)
    model = load_model(tmp_path)
    assert model.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    with torch.inference_mode():
        expected = [network(input_ids=tokens[None], use_cache=False).logits[0] for tokens in prompts()]
    for got, wanted in zip(PagedRun(model).logits(prompts()), expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype_auto_keeps_what_is_stored(tmp_path, dtype):
    model = load_model(save(make_network(dtype=dtype), tmp_path))
    assert model.dtype == dtype
    assert model.weight_nbytes == model.num_parameters * dtype.itemsize
    assert load_model(tmp_path, dtype="bfloat16").dtype == torch.bfloat16


def test_what_a_model_says_of_itself(checkpoint):
    model = load_model(checkpoint)
    assert model.vocab_size == 64
    assert model.max_model_len == 128
    assert model.eos_token_ids == {2}
    assert model.spec.elements_per_token == 2 * 2 * 2 * 8
    assert len(model.rules) == 2
    assert model.config.model_type == "llama"


def test_end_tokens_of_both_configurations_end(checkpoint):
    GenerationConfig(eos_token_id=[5, 6]).save_pretrained(checkpoint)
    assert load_model(checkpoint).eos_token_ids == {2, 5, 6}


def test_random_weights_follow_the_seed():
    config = make_network().config
    one, same, other = (model_from_config(config, dtype="bfloat16", seed=seed) for seed in (1, 1, 2))
    weights = [next(model.network.parameters()) for model in (one, same, other)]
    assert weights[0].dtype == torch.bfloat16
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_loading_is_silent_and_leaves_settings_alone(checkpoint, capfd):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.get_rng_state()
    load_model(checkpoint)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert capfd.readouterr() == ("", "")


def test_no_directory(tmp_path):
    with pytest.raises(ModelNotFoundError, match="There is no directory"):
        load_model(tmp_path / "absent")


def test_no_config(tmp_path):
    with pytest.raises(ModelNotFoundError, match="has no config"):
        load_model(tmp_path)


def test_no_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="safetensors"):
        load_model(checkpoint)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_config_that_is_not_an_object(checkpoint, text):
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(CorruptCheckpointError, match=r"JSON|not an object"):
        load_model(checkpoint)


def edit_config(checkpoint, **values):
    edit(checkpoint / "config.json", **values)


def test_config_with_impossible_values(checkpoint):
    edit_config(checkpoint, num_hidden_layers="two")
    with pytest.raises(CorruptCheckpointError, match="not a valid llama configuration"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "no_such_family"}, "no model type 'no_such_family'"),
        ({"model_type": "own", "auto_map": {"AutoModel": "own.Own"}}, "brings its own code"),
        ({"model_type": "vit"}, "not a decoder"),
        ({"model_type": "doge"}, "never calls the attention interface"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantised"),
    ],
)
def test_unsupported_checkpoints(checkpoint, values, reason):
    edit_config(checkpoint, **values)
    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(checkpoint)


@pytest.mark.parametrize("keep", [0, 6, 2000])
def test_truncated_weights(checkpoint, keep):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptCheckpointError, match="cannot be read"):
        load_model(checkpoint)


def test_a_missing_shard(tmp_path):
    save(make_network(), tmp_path, max_shard_size="8KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(CorruptCheckpointError, match="cannot be read"):
        load_model(tmp_path)


def edit_weights(checkpoint, change):
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def test_a_missing_weight_is_named(checkpoint):
    edit_weights(checkpoint, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CorruptCheckpointError, match=r"lacks 1 weights.*layers\.1\.mlp\.up_proj"):
        load_model(checkpoint)


def test_a_weight_of_the_wrong_shape_is_named(checkpoint):
    edit_weights(checkpoint, lambda weights: weights.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(CorruptCheckpointError, match=r"model\.norm\.weight \[7\] instead of \[32\]"):
        load_model(checkpoint)


def test_unknown_dtype(checkpoint):
    with pytest.raises(ConfigError, match="dtype is 'int3'"):
        load_model(checkpoint, dtype="int3")
