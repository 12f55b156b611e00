"""How layers turn keys is found out, and turned keys are those that stand at other positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    CohereConfig,
    DeepseekV3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
    SmolLM3Config,
)

from oracle.families import build_tiny
from pagoda.config import Environment
from pagoda.formats.page import page_geometries
from pagoda.kernels.dispatch import choose_kernels
from pagoda.kernels.turning import turn_keys
from pagoda.layouts.spec import SiteSlot
from pagoda.models.attention import BoundSite, PagedStep
from pagoda.models.loader import Model, model_from_config
from pagoda.models.passage import Passage
from pagoda.models.rotations import find_rotations
from pagoda.registry import lookup

VOCABULARY = 200
TOKENS = torch.arange(64) * 31 % VOCABULARY
DISTANCE = 320
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LATENT = {
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "first_k_dense_replace": 2,
    "num_key_value_heads": 4,
}


def scaled(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **more}}


CONFIGS = {
    "halves": LlamaConfig(**SIZES),
    "neighbours": CohereConfig(**SIZES),
    "some channels": PhiConfig(**SIZES, partial_rotary_factor=0.5),
    "quarter": GPTNeoXConfig(**SIZES),
    "linear": LlamaConfig(**SIZES, **scaled("linear")),
    "yarn": LlamaConfig(**SIZES, **scaled("yarn", original_max_position_embeddings=256)),
    "dynamic": LlamaConfig(**SIZES, **scaled("dynamic", original_max_position_embeddings=256)),
    "latent": DeepseekV3Config(**SIZES, **LATENT),
    "two kinds": Gemma3TextConfig(**SIZES, head_dim=16, layer_types=["sliding_attention", "full_attention"]),
    "layers without": SmolLM3Config(**SIZES, no_rope_layers=[1, 0]),
}


def pages_at(model: Model, position: int, format: str) -> tuple[tuple[BoundSite, ...], list[torch.Tensor]]:
    """What attention calls write to, and the pages of each layer group, with TOKENS from `position` on."""
    geometries = page_geometries(model.spec, lookup("format", format), 32)
    passage = Passage(model, choose_kernels(Environment.read()), geometries, len(TOKENS), position=position)
    passage.run(TOKENS, torch.tensor([0]), PagedStep)
    return passage._sites, [site.layer.pages for site in passage._sites]


def keys_of(site: BoundSite, pages: torch.Tensor) -> torch.Tensor:
    slot = site.layer.key
    return site.layer.format.decode(pages[:, slot.offset : slot.offset + slot.nbytes], slot.plane)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("format", "bound"), [("fp32", 1e-4), ("bf16", 2e-2), ("int8", 3e-2)])
def test_turned_keys_are_those_of_other_positions(name: str, format: str, bound: float) -> None:
    """To rounding: bf16 keeps 8 bits of a number; int8 7 bits, and that again."""
    model = model_from_config(CONFIGS[name], dtype="float32", seed=0)
    model.fix_length(1024)
    found = find_rotations(model, choose_kernels(Environment.read()))
    sites, here = pages_at(model, 0, format)
    _, there = pages_at(model, DISTANCE, format)
    for slot, site, before, after in zip(model.spec.sites, sites, here, there, strict=True):
        rotation = found[SiteSlot(slot.group, slot.layer)]
        assert rotation.is_explained
        keys, wanted = keys_of(site, before), keys_of(site, after)
        turns = bool(rotation.rotation.frequencies.any())
        assert turns == ((keys - wanted).norm() > 0.1 * keys.norm())
        turned = before.clone()
        turn_keys(site.layer, rotation.rotation, DISTANCE, turned)
        assert (keys_of(site, turned) - wanted).norm() < bound * wanted.norm()
        values = site.layer.value
        if values is not site.layer.key:
            part = slice(values.offset, values.offset + values.nbytes)
            assert torch.equal(turned[:, part], before[:, part])


@pytest.mark.parametrize("config", [GPT2Config(**SIZES, n_positions=1024)], ids=["learned"])
def test_positions_that_are_added_are_no_rotation(config: Any) -> None:
    model = model_from_config(config, dtype="float32", seed=0)
    assert not any(each.is_explained for each in find_rotations(model, choose_kernels(Environment.read())).values())


def test_without_positions_in_keys_nothing_is_turned() -> None:
    """ALiBi puts them into scores."""
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4)
    found = find_rotations(model_from_config(config, dtype="float32", seed=0), choose_kernels(Environment.read()))
    assert all(each.is_explained and not each.rotation.frequencies.any() for each in found.values())


@pytest.mark.parametrize(("family", "num_layers"), [("llama", 2), ("qwen2", 2), ("gpt2", 0), ("bart", 0)])
def test_only_rotations_that_are_sure_are_explained(family: str, num_layers: int) -> None:
    """Learned positions are in the keys, and what has an encoder does not run over a text alone."""
    model = Model.from_transformers(build_tiny(family))
    found = find_rotations(model, choose_kernels(Environment.read())).values()
    explained = [each.rotation for each in found if each.is_explained]
    assert len(explained) == num_layers
    assert all(each.frequencies[0] == 1 for each in explained)
