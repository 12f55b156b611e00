"""What the discovery pass finds in families whose attention is not plain, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from pagoda.errors import UnsupportedModelError
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.latent import LatentLayout
from pagoda.layouts.spec import Reach
from pagoda.models.discovery import discover
from pagoda.models.quiet import quiet
from pagoda.models.tiny import shrink

FULL, SLIDING, CHUNKED = Reach.FULL, Reach.SLIDING, Reach.CHUNKED


def config_of(family, **settings):
    with quiet():
        return AutoConfig.for_model(family, **settings)


def groups_of(found):
    return {(group.reach, group.span): len(group.layouts) for group in found.spec.groups}


@pytest.mark.parametrize(
    ("family", "settings", "groups"),
    [
        ("llama", {}, {(FULL, None): 32}),
        ("gpt2", {}, {(FULL, None): 12}),
        ("mistral", {}, {(SLIDING, 4096): 32}),
        ("mistral", {"sliding_window": None}, {(FULL, None): 32}),
        ("gemma2", {}, {(SLIDING, 4096): 13, (FULL, None): 13}),
        ("gemma3_text", {}, {(SLIDING, 4096): 22, (FULL, None): 4}),
        ("cohere2", {}, {(SLIDING, 4096): 30, (FULL, None): 10}),
        ("gpt_oss", {}, {(SLIDING, 128): 18, (FULL, None): 18}),
        ("phimoe", {"sliding_window": 100, "num_hidden_layers": 2}, {(SLIDING, 100): 2}),
        ("llama4_text", {}, {(CHUNKED, 8192): 36, (FULL, None): 12}),
        ("diffllama", {"num_hidden_layers": 3}, {(FULL, None): 6}),
        ("gemma4_text", {}, {(SLIDING, 512): 25, (FULL, None): 5}),
    ],
)
def test_layer_groups(family, settings, groups):
    assert groups_of(discover(config_of(family, **settings))) == groups


def test_layers_that_share_a_cache_write_nothing():
    found = discover(shrink(config_of("gemma3n_text")))  # kinds: sliding, full, sliding, full; the last two share
    *stored, sliding, full = found.spec.sites
    assert all(site.writes for site in stored)
    assert (sliding.writes, full.writes) == (False, False)
    assert {(site.group, site.layer) for site in (sliding, full)} == {(site.group, site.layer) for site in stored[-2:]}


def test_widths_may_differ_inside_a_model():
    layouts = {group.layouts[0] for group in discover(shrink(config_of("gemma4_text"))).spec.groups}
    assert layouts == {AttentionLayout(2, 16, 16), AttentionLayout(2, 32, 32)}


def test_soft_cap_sinks_and_scale_come_from_the_call():
    gemma = discover(config_of("gemma2", query_pre_attn_scalar=64, num_hidden_layers=2))
    assert {rule.soft_cap for rule in gemma.rules} == {50.0}
    assert {rule.scale for rule in gemma.rules} == {0.125}
    assert all(discover(config_of("gpt_oss", num_hidden_layers=2)).sinks)
    assert not any(gemma.sinks)


def test_a_narrow_value_stays_narrow():
    config = config_of("mimo_v2_flash")
    assert config.v_head_dim < config.head_dim
    layouts = {layout for group in discover(config).spec.groups for layout in group.layouts}
    assert {(layout.key_width, layout.value_width) for layout in layouts} == {(config.head_dim, config.v_head_dim)}


def test_latents_stay_latents():
    found = discover(config_of("deepseek_v3", num_hidden_layers=4))
    assert found.spec.groups[0].layouts == (LatentLayout(512, 64),) * 4


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("bert", {}, "bidirectional_mask_function"),
        ("led", {}, "never calls the attention interface"),
        ("xlm", {"n_layers": 2}, "never calls the attention interface"),
        ("recurrent_gemma", {}, "something other than keys and values"),
        ("deepseek_v32", {}, "indexed_attention"),
        ("mllama", {}, "attends 32 times but has 40 layers"),
        ("doge", {}, "never calls the attention interface"),
        ("mistral", {"sliding_window": 0, "num_hidden_layers": 2}, "its window is 0 tokens"),
    ],
)
def test_what_pages_cannot_serve_is_refused_with_the_reason(family, settings, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        discover(config_of(family, **settings))


def test_discovery_leaves_the_configuration_and_the_random_state_alone():
    config = config_of("qwen3", num_hidden_layers=2)
    before, state = config.to_dict(), torch.get_rng_state()
    discover(config)
    assert config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)
