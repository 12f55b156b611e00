"""Latent attention: pages hold latents, nothing is copied, and the engine continues as `generate()` does."""

from __future__ import annotations

import pytest
import torch
from transformers import DeepseekV3Config

from oracle import families
from pagoda import LLM, SamplingParams
from pagoda.errors import ConfigError
from pagoda.formats.page import page_geometries
from pagoda.formats.plain import BF16
from pagoda.layouts.latent import LATENT_FAMILIES, LatentLayout
from pagoda.models.latent import up_projections
from pagoda.models.model import Model
from pagoda.planning.spec import spec_from_config
from pagoda.registry import names


def test_a_token_of_deepseek_v3_takes_70272_bytes():
    """61 layers of 512 + 64 numbers of two bytes."""
    spec = spec_from_config(DeepseekV3Config().to_dict())
    nbytes = sum(geometry.nbytes_per_token for geometry in page_geometries(spec, BF16, 32))
    assert nbytes == 61 * (512 + 64) * 2 == 70_272


@pytest.mark.parametrize("family", LATENT_FAMILIES)
def test_every_layer_keeps_latents(family):
    model = Model.from_transformers(families.build_tiny(family))
    config = model.config
    layout = LatentLayout(config.kv_lora_rank, config.qk_rope_head_dim)
    assert {each for group in model.spec.groups for each in group.layouts} == {layout}


def test_up_projections_are_views_of_the_weight():
    network = families.build_tiny("deepseek_v3")
    attention = network.model.layers[0].self_attn
    places = {projection.untyped_storage().data_ptr() for projection in up_projections(attention)}
    assert places == {attention.kv_b_proj.weight.untyped_storage().data_ptr()}


@pytest.mark.parametrize("format", [name for name in names("format") if name != "k8v4"])
def test_every_format_keeps_latents(format):
    """Warm equals cold, and the format changes the logits by little: the best token of fp32 stays near the top."""
    model = Model.from_transformers(families.build_tiny("deepseek_v3"))
    prompt = torch.randint(5, 100, (70,), generator=torch.Generator().manual_seed(0)).tolist()
    params = SamplingParams(temperature=0, max_tokens=12, logprobs=5, ignore_eos=True)
    with LLM(model, kv_cache_dtype="fp32", num_threads=1) as llm:
        exact = llm.generate([prompt], params)[0].outputs[0]
    with LLM(model, kv_cache_dtype=format, num_threads=1) as llm:
        cold, warm = (llm.generate([prompt], params)[0] for _ in range(2))
        llm.check_integrity()
    assert warm.num_cached_tokens == len(prompt) - 1
    assert warm.outputs[0].token_ids == cold.outputs[0].token_ids
    assert exact.token_ids[0] in cold.outputs[0].logprobs[0].top


@pytest.mark.parametrize("format", ["k8v4", "bf16/int8"])
def test_a_mixture_for_keys_and_values_is_refused(format):
    model = Model.from_transformers(families.build_tiny("deepseek_v3"))
    with pytest.raises(ConfigError, match="latent rows are keys and values at once"):
        LLM(model, kv_cache_dtype=format, num_threads=1)
