"""Every family through the whole engine against Hugging Face `generate()`: greedy tokens and logits, in fp32.

Each prompt runs cold, warm, in chunks of odd size beside others, and on a pool so small that sequences are preempted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from oracle import families
from pagoda import LLM, RequestOutput, SamplingParams
from pagoda.formats.state import StateGeometry
from pagoda.models.model import Model
from pagoda.models.quiet import quiet

NEW_TOKENS = 10
VOCABULARY = 100  # of the tiny configurations' 128: the rest may be special
PARAMS = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=3, ignore_eos=True)


def _tokens(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCABULARY, (length,), generator=generator).tolist()


LONG = _tokens(37, 0)
PROMPTS = (LONG, LONG[:21] + _tokens(3, 1), _tokens(14, 2), _tokens(15, 3))


def make(model: Model, num_pages: int, **options: Any) -> LLM:
    """An engine with memory for so many pages, and for two recurrent states."""
    nbytes = num_pages * 16 * 4 * model.spec.elements_per_token
    if model.spec.states:
        nbytes += 2 * StateGeometry(model.spec.states, 4).page_nbytes
    return LLM(model, block_size=16, kv_cache_memory_bytes=nbytes, num_threads=1, **options)


@dataclass(frozen=True)
class Expected:
    """What `generate()` continues a prompt with, and the logits of each step."""

    tokens: list[int]
    logits: torch.Tensor  # [steps, vocabulary]

    @property
    def tolerance(self) -> float:
        """Rounding of fp32 through a few layers.

        A logit is a sum of some hundred products at every layer, each rounded by 2^-24 of its size: within 2^-24 x
        1000 of the largest logit when all of it adds up the same way.
        """
        return float(self.logits.abs().max()) * 2.0**-14


def expect(network: Any, prompt: list[int]) -> Expected:
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    network.generation_config.eos_token_id = None  # generate() fills gaps of a configuration from here
    with quiet(), torch.inference_mode():
        out = network.generate(torch.tensor([prompt]), generation_config=config)
    return Expected(out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits).float())


def check(output: RequestOutput, expected: Expected) -> None:
    """The same tokens, unless the two best are closer than rounding, and the same log-probabilities."""
    sample = output.outputs[0]
    assert sample.logprobs is not None
    steps = zip(sample.token_ids, expected.tokens, sample.logprobs, expected.logits.log_softmax(-1), strict=True)
    for token, expected_token, logprobs, row in steps:
        assert abs(logprobs.logprob - float(row[token])) <= expected.tolerance
        if token != expected_token:
            assert float(row.max() - row[token]) <= expected.tolerance
            return  # a tie: from here on the two read different tokens
        for other, logprob in logprobs.top.items():
            assert abs(logprob - float(row[other])) <= expected.tolerance


@pytest.mark.parametrize("family", families.FAMILIES)
def test_greedy_generation_equals_hugging_face(family: str) -> None:
    network = families.build_tiny(family)
    expected = [expect(network, prompt) for prompt in PROMPTS]
    model = Model.from_transformers(network)
    with make(model, num_pages=64) as llm:
        for _ in ("cold", "warm"):
            check(llm.generate(PROMPTS[0], PARAMS)[0], expected[0])
        assert llm.cache_stats().hit_tokens == len(PROMPTS[0]) - 1
    with make(model, num_pages=64, max_num_seqs=4, max_num_batched_tokens=11) as llm:
        for output, expectation in zip(llm.generate(PROMPTS, PARAMS), expected, strict=True):
            check(output, expectation)
        llm.check_integrity()
    with make(model, num_pages=3, max_num_seqs=2, snapshot_memory_share=0.0) as llm:
        outputs = llm.generate(PROMPTS[2:], PARAMS)
        for output, expectation in zip(outputs, expected[2:], strict=True):
            check(output, expectation)
        assert not model.spec.groups or sum(output.metrics.num_preemptions for output in outputs) > 0
        llm.check_integrity()
