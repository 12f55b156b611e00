"""Every page format through the engine: what is cached, chunked, batched or forked changes no token."""

from __future__ import annotations

import pytest
import torch

from engine.tiny import VOCABULARY, windowed_model
from pagoda import LLM, RequestOutput, SamplingParams
from pagoda.errors import ConfigError
from pagoda.formats.page import page_geometries
from pagoda.models.model import Model
from pagoda.registry import lookup, names

PARAMS = SamplingParams(temperature=0, max_tokens=40, logprobs=2)
PAGE_TOKENS = 16

every_format = pytest.mark.parametrize("format", names("format"))


def make(model: Model, format: str, num_pages: int = 100, **options: int) -> LLM:
    (geometry,) = page_geometries(model.spec, lookup("format", format), PAGE_TOKENS)
    nbytes = num_pages * geometry.page_nbytes
    options = {"num_threads": 1, "block_size": PAGE_TOKENS, "kv_cache_memory_bytes": nbytes, **options}
    return LLM(model, kv_cache_dtype=format, **options)


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()


PROMPTS = [prompt(75), prompt(75)[:53] + prompt(9, seed=1), prompt(16, seed=2), prompt(31, seed=3)]


def results(outputs: list[RequestOutput], format: str) -> list[tuple[list[int], list[float]]]:
    """Tokens and their log-probabilities, to fp32 rounding through two layers.

    A number on the border of two codes falls to either side, as products of another shape round: of bf16, that is half
    of the distance between codes of 8 bits, of four bits a fifteenth of the range of a row.
    """
    coarse = {"bf16": 2**-8, "int4": 0.03, "int4_rotated": 0.03, "int4_plain": 0.03, "k8v4": 0.03}
    rounding = coarse.get(format, 1e-3)
    samples = [sample for output in outputs for sample in output.outputs]
    return [
        (sample.token_ids, pytest.approx([each.logprob for each in sample.logprobs or []], abs=rounding))
        for sample in samples
    ]


def exact(outputs: list[RequestOutput]) -> list[tuple[list[int], list[float]]]:
    samples = [sample for output in outputs for sample in output.outputs]
    return [(sample.token_ids, [each.logprob for each in sample.logprobs or []]) for sample in samples]


@pytest.fixture(scope="module", params=names("format"))
def cold(request: pytest.FixtureRequest, model: Model) -> tuple[str, list[tuple[list[int], list[float]]]]:
    """What each prompt gives with an empty cache, alone."""
    outputs = []
    for each in PROMPTS:
        with make(model, request.param) as llm:
            outputs += llm.generate([each], PARAMS)
    return request.param, results(outputs, request.param)


class TestTheSameTokens:
    def test_after_hits_that_end_inside_pages(self, cold, model):
        format, expected = cold
        with make(model, format) as llm:
            outputs = [llm.generate([each], PARAMS)[0] for each in PROMPTS]
            again = [llm.generate([each], PARAMS)[0] for each in PROMPTS]
            assert [output.num_cached_tokens for output in outputs] == [0, 53, 0, 0]
            assert [output.num_cached_tokens for output in again] == [len(each) - 1 for each in PROMPTS]
            assert exact(outputs) == expected
            assert exact(again) == expected
            llm.check_integrity()

    def test_in_chunks_and_batches(self, cold, model):
        format, expected = cold
        with make(model, format, max_num_batched_tokens=11, max_num_seqs=4) as llm:
            assert exact(llm.generate(PROMPTS, PARAMS)) == expected

    def test_after_preemption(self, cold, model):
        format, expected = cold
        with make(model, format, num_pages=9) as llm:
            assert exact(llm.generate(PROMPTS, PARAMS)) == expected
            llm.check_integrity()

    def test_in_forks(self, cold, model):
        format, expected = cold
        params = SamplingParams(temperature=0, max_tokens=40, logprobs=2, n=3)
        with make(model, format) as llm:
            assert exact(llm.generate([PROMPTS[0]], params)) == [expected[0]] * 3
            llm.check_integrity()


@every_format
def test_a_format_is_in_use(format, model):
    with make(model, format) as llm:
        assert llm.engine.memory.geometries[0].format.name == format


def test_coded_pages_hold_more_tokens_in_the_same_memory(model):
    tokens = {}
    for format in ("fp32", "bf16", "int8", "fp8_e4m3", "int4", "k8v4"):
        with LLM(model, kv_cache_dtype=format, kv_cache_memory_bytes=1 << 20, num_threads=1) as llm:
            tokens[format] = llm.cache_stats().groups[0].total * 32
    # 16 channels and a scale take 18 bytes where fp32 takes 64 and bf16 32; of four bits with a step and a zero 11.
    assert tokens["bf16"] == 2 * tokens["fp32"]
    assert tokens["int8"] == tokens["fp8_e4m3"] == pytest.approx(tokens["bf16"] * 32 / 18, rel=0.05)
    assert tokens["int4"] == pytest.approx(tokens["bf16"] * 32 / 11, rel=0.05)
    assert tokens["k8v4"] == pytest.approx(tokens["bf16"] * 32 / 14.5, rel=0.05)


def test_an_unknown_format_is_refused_with_those_there_are(model):
    with pytest.raises(ConfigError, match=r"no format named 'int3'.*fp32.*int8.*fp8_e4m3"):
        LLM(model, kv_cache_dtype="int3")


@pytest.fixture(scope="module")
def gemma() -> Model:
    return windowed_model("bfloat16")


@pytest.mark.parametrize("kv_cache_dtype", ["bf16/int4", "int4/bf16", "fp8_e4m3/int4", "full=int4,sliding=k8v4"])
def test_every_mixture_generates_the_same_cold_and_warm(gemma, kv_cache_dtype):
    params = SamplingParams(temperature=0, max_tokens=20)
    with LLM(
        gemma, kv_cache_dtype=kv_cache_dtype, kv_cache_dtype_skip_layers=(1,), kv_cache_memory_bytes=1 << 22
    ) as llm:
        cold, warm = (llm.generate([list(range(40))], params)[0] for _ in range(2))
        assert warm.num_cached_tokens == 39
        assert warm.outputs[0].token_ids == cold.outputs[0].token_ids
        llm.check_integrity()
