"""Encoder-decoder families through the whole engine against `generate()` of transformers, in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from oracle import families
from oracle.generation import PARAMS, check, expect, random_tokens
from pagoda import LLM
from pagoda.models.model import GenerationTokens, Model

START = 3  # what decoders start from in these tests

# The decoder's prompts; what the encoder reads for each is one of INPUTS.
PROMPTS = (
    [START],
    [START, *random_tokens(36, 1)],
    [START, *random_tokens(17, 2)],
    [START, *random_tokens(17, 2)],
    [START, *random_tokens(13, 3)],
    [START, *random_tokens(14, 4)],
)
INPUT_OF = (0, 1, 0, 1, 0, 0)
NUM_INPUT_TOKENS = (21, 34)


def read_by(model: Model) -> list[dict[str, Any]]:
    """What the encoder of `model` is given in these tests, as prompts say it."""
    assert model.encoder is not None
    if model.encoder.reads_text:
        return [{"prompt_token_ids": random_tokens(length, 10 + length)} for length in NUM_INPUT_TOKENS]
    generator = torch.Generator().manual_seed(0)
    return [{"input_features": torch.randn(model.encoder.feature_shape, generator=generator)} for _ in NUM_INPUT_TOKENS]


def make(model: Model, num_pages: int, **options: Any) -> LLM:
    """An engine with at least so many pages of each kind."""
    assert model.encoder is not None
    per_page = 16 * 4 * (model.spec.elements_per_token + model.spec.elements_per_encoder_token)
    return LLM(model, block_size=16, kv_cache_memory_bytes=num_pages * per_page, num_threads=1, **options)


@pytest.mark.parametrize("family", ["t5", "bart", "t5gemma", "whisper"])
def test_the_same_wherever_a_decoder_prompt_is_resumed(family: str) -> None:
    """Prompts that leave one another around the borders of pages, and then all of them again, for one input."""
    network = families.build_tiny(family)
    model = Model.from_transformers(network)
    model.generation = GenerationTokens(start=(START,))
    (read, *_), story = read_by(model), [START, *random_tokens(50, 5)]
    value = torch.as_tensor(next(iter(read.values())))
    prompts = [story, *(story[:cut] + random_tokens(6, 100 + cut) for cut in (1, 2, 15, 16, 17, 31, 32, 33, 48)), story]
    expected = [expect(network, prompt, value) for prompt in prompts]
    with make(model, num_pages=64) as llm:
        for hits in (None, [len(prompt) - 1 for prompt in prompts]):
            outputs = [llm.generate({"encoder_prompt": read, "decoder_prompt": each}, PARAMS)[0] for each in prompts]
            for output, expectation in zip(outputs, expected, strict=True):
                check(output, expectation)
            assert hits in (None, [output.num_cached_tokens for output in outputs])
        llm.check_integrity()


def test_padding_among_the_words_of_a_translation() -> None:
    """M2M-100 gives padding the position of padding, and generates it too."""
    network = families.build_tiny("m2m_100")
    model = Model.from_transformers(network)
    model.generation = GenerationTokens(start=(START,))
    prompt, read = [START, 9, 7, network.config.pad_token_id], random_tokens(21, 1)
    with make(model, num_pages=64) as llm:
        output = llm.generate({"encoder_prompt": read, "decoder_prompt": prompt}, PARAMS)[0]
    check(output, expect(network, prompt, torch.tensor(read)))


@pytest.mark.parametrize("family", families.ENCODER_DECODERS)
def test_greedy_generation_equals_hugging_face(family: str) -> None:
    network = families.build_tiny(family)
    model = Model.from_transformers(network)
    inputs = read_by(model)
    values = [torch.as_tensor(next(iter(each.values()))) for each in inputs]
    expected = [expect(network, prompt, values[i]) for prompt, i in zip(PROMPTS, INPUT_OF, strict=True)]
    prompts = [
        {"encoder_prompt": inputs[i], "decoder_prompt": prompt} for prompt, i in zip(PROMPTS, INPUT_OF, strict=True)
    ]
    model.generation = GenerationTokens(start=(START,))
    with make(model, num_pages=64) as llm:
        for which, cached in ((1, 0), (1, len(PROMPTS[1]) - 1), (2, 0), (3, 1)):
            output = llm.generate(prompts[which], PARAMS)[0]
            check(output, expected[which])
            assert output.num_cached_tokens == cached, "those of the same input alone"
        assert output.num_cached_encoder_tokens == output.num_encoder_tokens
    with make(model, num_pages=64, max_num_seqs=4, max_num_batched_tokens=11) as llm:
        for output, expectation in zip(llm.generate(prompts, PARAMS), expected, strict=True):
            check(output, expectation)
        assert sum(output.num_cached_encoder_tokens > 0 for output in llm.generate(prompts, PARAMS)) == len(prompts)
        llm.check_integrity()
    with make(model, num_pages=3, max_num_seqs=2) as llm:
        outputs = llm.generate(prompts[4:], PARAMS)
        for output, expectation in zip(outputs, expected[4:], strict=True):
            check(output, expectation)
        assert sum(output.metrics.num_preemptions for output in outputs) > 0
        llm.check_integrity()
