"""Encoder-decoder models beside `generate()` of transformers: first token and decode, with the same random weights.

    python benchmarks/encoders.py --model whisper --rounds 3

T5-base reads 512 tokens and Whisper-small 30 seconds of sound, in bf16. The two take turns within each round.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from time import perf_counter
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, StoppingCriteria, T5Config, WhisperConfig

from pagoda import LLM, SamplingParams
from pagoda.models.build import random_network
from pagoda.models.encoder import EncoderInput
from pagoda.models.model import Model
from pagoda.models.placement import move_to_huge_pages
from pagoda.models.quiet import quiet

TEXT_TOKENS = 512
OUTPUT_TOKENS = 64
START = 3
CONFIGS: dict[str, Any] = {
    "t5": T5Config(d_model=768, num_layers=12, num_heads=12, d_ff=3072, decoder_start_token_id=START),
    "whisper": WhisperConfig(
        d_model=768,
        encoder_layers=12,
        decoder_layers=12,
        encoder_attention_heads=12,
        decoder_attention_heads=12,
        encoder_ffn_dim=3072,
        decoder_ffn_dim=3072,
        decoder_start_token_id=START,
    ),
}


class Clock(StoppingCriteria):
    """Notes when each token was chosen, and stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.times.append(perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Transformers:
    """Greedy `generate()` over the network's own attention, all inputs as one batch."""

    def __init__(self, network: Any) -> None:
        self._network = network
        network.generation_config = GenerationConfig(decoder_start_token_id=START)

    def run(self, inputs: list[EncoderInput], num_tokens: int) -> list[float]:
        """Seconds to the first token, and from each to the next."""
        config = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
        values, clock = torch.stack([each.values for each in inputs]), Clock()
        if values.is_floating_point():
            values = values.to(self._network.dtype)
        start = torch.full((len(inputs), 1), START)
        begin = perf_counter()
        with quiet(), torch.inference_mode():
            GenerationMixin.generate(
                self._network, values, generation_config=config, decoder_input_ids=start, stopping_criteria=[clock]
            )
        return gaps(begin, clock.times)


class Pagoda:
    """The engine, which forgets what it has read unless it is told to keep it."""

    def __init__(self, network: Any) -> None:
        self._llm = LLM(Model.from_transformers(network), kv_cache_memory_bytes=2 << 30)

    def run(self, inputs: list[EncoderInput], num_tokens: int, keep: bool = False) -> list[float]:
        """As `Transformers.run`, of the request that starts last."""
        if not keep:
            self._llm.reset_prefix_cache()
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        name = "input_features" if inputs[0].token_ids is None else "prompt_token_ids"
        prompts = [
            {"encoder_prompt": {name: each.token_ids or each.values}, "decoder_prompt": [START]} for each in inputs
        ]
        last = self._llm.generate(prompts, params, use_tqdm=False)[-1].metrics
        return gaps(last.arrival, last.token_times)


def gaps(begin: float, times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise([begin, *times])]


def make_inputs(model: Model, count: int) -> list[EncoderInput]:
    generator = torch.Generator().manual_seed(0)
    assert model.encoder is not None
    if model.encoder.reads_text:
        prompts = torch.randint(5, 30000, (count, TEXT_TOKENS), generator=generator).tolist()
        return [model.encoder.input_of_tokens(prompt) for prompt in prompts]
    return [
        model.encoder.input_of_features(torch.randn(model.encoder.feature_shape, generator=generator))
        for _ in range(count)
    ]


def measure(ours: Pagoda, theirs: Transformers, inputs: list[EncoderInput]) -> dict[str, tuple[float, float]]:
    """Seconds of ours and of theirs, by workload; of a token after the first, the median."""
    one = inputs[:1]
    mine, other = ours.run(one, OUTPUT_TOKENS), theirs.run(one, OUTPUT_TOKENS)
    again = ours.run(one, 1, keep=True)
    many, others = ours.run(inputs, OUTPUT_TOKENS), theirs.run(inputs, OUTPUT_TOKENS)
    return {
        "first token of a new input": (mine[0], other[0]),
        "first token of an input read before": (again[0], other[0]),
        "a token, one request": (statistics.median(mine[1:]), statistics.median(other[1:])),
        f"a token, {len(inputs)} requests": (statistics.median(many[1:]), statistics.median(others[1:])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONFIGS, default="t5")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    network = random_network(CONFIGS[arguments.model], "sdpa", torch.bfloat16)
    move_to_huge_pages(network)
    ours, theirs = Pagoda(network), Transformers(network)
    inputs = make_inputs(Model.from_transformers(network), arguments.batch)
    measure(ours, theirs, inputs)  # nothing is measured the first time
    rounds = [measure(ours, theirs, inputs) for _ in range(arguments.rounds)]
    print(
        f"{arguments.model}, bf16, {arguments.threads} threads; milliseconds, median of {len(rounds)} (lowest-highest)"
    )
    print("| | Pagoda | generate() | ratio |")
    print("|---|---|---|---|")
    for name in rounds[0]:
        columns = list(zip(*(each[name] for each in rounds), strict=True))
        ratio = statistics.median(each[name][1] / each[name][0] for each in rounds)
        print(f"| {name} | {' | '.join(map(described, columns))} | {ratio:.2f} |")


def described(values: tuple[float, ...]) -> str:
    return f"{1e3 * statistics.median(values):.1f} ({1e3 * min(values):.1f}-{1e3 * max(values):.1f})"


if __name__ == "__main__":
    main()
