"""The same bits alone, in a batch, in chunks and over cached pages."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from oracle.families import build_tiny
from pagoda import LLM, SamplingParams
from pagoda.config import Environment
from pagoda.errors import ConfigError
from pagoda.kernels.dispatch import choose_kernels
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_calls import instruction_sets
from pagoda.kernels.native_layers import MAX_LINEAR_ROWS
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.determinism import check_determinism
from pagoda.models.loader import load_model
from pagoda.models.model import Model

pytestmark = pytest.mark.usefixtures("two_threads")

TEXT = "The room was a pleasant one, at the top of the house, overlooking the sea, and nobody had slept in it. " * 4
PARTS = ((0, 100), (0, 75), (7, 95), (25, 45), (3, 1), (45, 65))
PROMPTS = [TEXT[start : start + length] for start, length in PARTS]
PARAMS = SamplingParams(temperature=0, max_tokens=8, logprobs=4, ignore_eos=True)
SMALL = {"kv_cache_memory_bytes": 32 << 20, "max_model_len": 512}


def numbers(outputs):
    """Tokens, and the logarithms of their and others' probabilities."""
    return [output.outputs[0].logprobs for output in outputs]


@pytest.fixture(scope="module")
def model():
    return load_model(EMBEDDED_MODEL, dtype="bfloat16")


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("format", ["auto", "int8"])
def test_alone_batched_chunked_and_cached_are_bitwise_the_same(isa, format, model):
    options = SMALL | {"kv_cache_dtype": format, "environment": replace(Environment.read(), kernel_isa=isa)}
    make = partial(LLM, model, tokenizer=EMBEDDED_MODEL, deterministic=True, **options)
    with make(enable_prefix_caching=False) as llm:
        alone = [numbers(llm.generate([prompt], PARAMS))[0] for prompt in PROMPTS]
    with make() as llm:
        assert numbers(llm.generate(PROMPTS, PARAMS)) == alone
        assert numbers(llm.generate(PROMPTS, PARAMS)) == alone
        assert llm.cache_stats().hit_tokens > 0
    with make(max_num_batched_tokens=19, max_num_seqs=3) as llm:
        assert numbers(llm.generate(PROMPTS, PARAMS)) == alone


def test_decode_steps_of_any_batch_are_bitwise_the_same_by_default():
    """Prompts are computed one by one, so that they are equal; the steps after them are not."""
    with LLM(dtype="bfloat16", **SMALL) as llm:
        prompts = [PROMPTS[0][:30], *(f"{number} men" for number in range(MAX_LINEAR_ROWS - 1))]
        alone = numbers(llm.generate([prompts[0]], PARAMS))
        together = numbers(llm.generate(prompts, PARAMS))
        assert together[:1] == alone


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "deepseek_v3", "gpt2"])
def test_families_are_tried(family):
    model = Model.from_transformers(build_tiny(family).to(torch.bfloat16))
    check_determinism(model, NativeKernels(deterministic=True))


def test_a_model_that_depends_on_its_batch_is_refused():
    model = Model.from_transformers(build_tiny("jamba").to(torch.bfloat16))
    with pytest.raises(ConfigError, match="a jamba model has layers whose results depend"):
        LLM(model, deterministic=True, kv_cache_memory_bytes=8 << 20)
    encoder = Model.from_transformers(build_tiny("bart"))
    with pytest.raises(ConfigError, match="this model has an encoder"):
        LLM(encoder, deterministic=True, kv_cache_memory_bytes=8 << 20)


def test_the_reference_kernels_cannot():
    with pytest.raises(ConfigError, match="needs kernels that order sums"):
        choose_kernels(Environment(kernels="reference"), deterministic=True)
    with pytest.raises(ConfigError, match="True or False"):
        LLM(deterministic="yes")
