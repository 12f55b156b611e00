"""Families that attend in code of their own, in the forms that published checkpoints have them in."""

import pytest

from oracle.families import default_config
from pagoda.errors import UnsupportedModelError
from pagoda.models.discovery import discover
from pagoda.models.selftest import paged_error, tiny_network

FALCON = {"num_attention_heads": 8, "hidden_size": 128, "num_hidden_layers": 2}


def config_of(family, **settings):
    config = default_config(family)
    for name, value in settings.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("falcon", {"new_decoder_architecture": True, "multi_query": True, "num_kv_heads": 2}),
        ("falcon", {"new_decoder_architecture": False, "multi_query": True}),
        ("falcon", {"new_decoder_architecture": False, "multi_query": False}),
        ("falcon", {"alibi": True, "multi_query": False, "bias": True}),
        ("falcon", {"parallel_attn": False}),
        ("bloom", {"n_head": 6}),
        ("mpt", {"n_heads": 6}),
        ("mpt", {"attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.2}}),
        ("gpt_neox_japanese", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    ],
)
def test_paged_logits_equal_transformers(family, settings):
    config = config_of(family, **{name: value for name, value in settings.items() if name != "attn_config"})
    for name, value in settings.get("attn_config", {}).items():
        setattr(config.attn_config, name, value)
    error, tolerance = paged_error(tiny_network(config))
    assert error <= tolerance


def test_falcon_keeps_the_heads_it_has_and_no_copies_of_them():
    config = config_of("falcon", new_decoder_architecture=True, num_kv_heads=2, **FALCON)
    (group,) = discover(config).spec.groups
    assert {(layout.num_kv_heads, layout.key_width) for layout in group.layouts} == {(2, 16)}


def test_windows_of_a_family_s_own_become_groups():
    groups = discover(default_config("gpt_neo")).spec.groups
    assert {(group.reach.value, group.span, len(group.layouts)) for group in groups} == {
        ("full", None, 12),
        ("sliding", 256, 12),
    }


@pytest.mark.parametrize("family", ["megatron-bert", "rembert"])
def test_an_encoder_is_refused(family):
    with pytest.raises(UnsupportedModelError, match="not a decoder"):
        discover(config_of(family, is_decoder=False, num_hidden_layers=2))
