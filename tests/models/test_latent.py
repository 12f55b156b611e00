"""Latent attention: pages hold latents, nothing is copied, and the engine continues as `generate()` does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DeepseekV3Config

from oracle import families
from pagoda import LLM, SamplingParams
from pagoda.errors import ConfigError
from pagoda.formats.page import page_geometries
from pagoda.formats.plain import BF16
from pagoda.kernels.coded_sizes import BLOCK_ROWS, UNIT_DEPTH
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import compiled
from pagoda.kernels.reference import ReferenceKernels
from pagoda.kernels.reference_layers import coded_input
from pagoda.kernels.weight_memory import WeightMemory
from pagoda.layouts.latent import LATENT_FAMILIES, LatentLayout
from pagoda.models import rounding
from pagoda.models.attention import ATTENTION_NAME
from pagoda.models.build import random_network
from pagoda.models.coded import held_weight
from pagoda.models.latent import CodedUpProjections, DenseUpProjections, attend_latents, up_projections
from pagoda.models.model import Model
from pagoda.models.placement import CPU
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
    attend_latents(network)
    projections = up_projections(attention)
    places = {each.untyped_storage().data_ptr() for each in (projections.into, projections.out_of)}
    assert places == {attention.kv_b_proj.weight.untyped_storage().data_ptr()}


@pytest.mark.parametrize(("nope", "value"), [(16, 16), (48, 32), (32, 64)])
def test_coded_up_projections_are_those_of_what_codes_stand_for(nope: int, value: int) -> None:
    """Queries meet codes as they are, results coded, as the input of every layer."""
    heads, latent, kernels = 3, 96, NativeKernels()
    weight = rounding.coded(torch.randn(heads * (nope + value), latent), is_fine=False)
    coded, dense = CodedUpProjections(weight, nope, value), DenseUpProjections(weight.decode(), nope, value)
    assert coded._matrices.data.data_ptr() == weight.data.data_ptr()
    for rows in (1, 5):
        query, result = torch.randn(rows, heads, nope), torch.randn(rows, heads, latent)
        expected = dense.into_latents(query, ReferenceKernels())
        torch.testing.assert_close(coded.into_latents(query, kernels), expected, rtol=1e-4, atol=1e-4)
        expected = dense.out_of_latents(coded_input(result), ReferenceKernels())
        torch.testing.assert_close(coded.out_of_latents(result, kernels), expected, rtol=1e-4, atol=1e-4)


def test_heads_without_whole_blocks_of_codes_stay_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "MIN_ROWS", 1)
    config = families.build_tiny("deepseek_v3").config
    assert (BLOCK_ROWS, UNIT_DEPTH) == (compiled().CODED_ROWS, compiled().UNIT_DEPTH)
    for width, held in ((BLOCK_ROWS, CodedWeight), (24, torch.nn.Parameter)):
        config.v_head_dim = width
        network = random_network(config, ATTENTION_NAME, torch.float32, 0, CPU)
        rounding.quantize(network, "int8")
        assert type(held_weight(network.model.layers[0].self_attn.kv_b_proj)) is held


def in_large_memory(network: Any) -> None:
    """As weights are that were moved to huge pages: all in one piece."""
    memory = WeightMemory()
    for parameter in network.parameters():
        parameter.data = memory.take(parameter.nbytes).view(parameter.dtype).view(parameter.shape).copy_(parameter)


@pytest.mark.parametrize("is_coded", [False, True])
def test_decode_steps_are_replayed(is_coded: bool) -> None:
    """A recording keeps no weights, which would be more than all recordings may have together."""
    network, calls = families.build_tiny("deepseek_v3"), []
    if is_coded:
        rounding.quantize(network, "int8")
    in_large_memory(network)
    model = Model.from_transformers(network)
    model.network.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(None))
    with LLM(model, kv_cache_memory_bytes=8 << 20, max_model_len=96) as llm:
        llm.generate([[5, 9, 12]], SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    assert len(calls) < 15


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
