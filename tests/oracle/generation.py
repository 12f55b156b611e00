"""What `generate()` of transformers continues a prompt with, and whether an output of ours is the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin

from pagoda import RequestOutput, SamplingParams
from pagoda.models.quiet import quiet

NEW_TOKENS = 4
VOCABULARY = 100  # of the tiny configurations' 128: the rest may be special
PARAMS = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=3, ignore_eos=True)


def random_tokens(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCABULARY, (length,), generator=generator).tolist()


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


def expect(network: Any, prompt: list[int], encoder_input: torch.Tensor | None = None) -> Expected:
    """`encoder_input` is what the encoder of `network` reads, if it has one."""
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    # generate() fills gaps of a configuration from here.
    network.generation_config = GenerationConfig(decoder_start_token_id=prompt[0])
    tokens = torch.tensor([prompt])
    inputs = (tokens,) if encoder_input is None else (encoder_input[None],)
    more = {} if encoder_input is None else {"decoder_input_ids": tokens}
    with quiet(), torch.inference_mode():
        # Whisper's own generate() cuts sound into pieces around this one.
        out = GenerationMixin.generate(network, *inputs, generation_config=config, **more)
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
