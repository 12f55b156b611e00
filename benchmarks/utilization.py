"""Tokens stored / token slots allocated on a mixed-length workload, against contiguous preallocation.

    python benchmarks/utilization.py

64 requests with the prompt and output lengths of a real conversation trace (Azure, 2023; longer ones are cut to the
model's context) run together on the embedded model. After every step the tokens stored by running sequences are
compared with the slots of the pages they hold, and with what one contiguous buffer per running sequence would take:
of the model's context, or, had their output lengths been known beforehand, of the exact final length.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import random
from pathlib import Path

from pagoda.config import EngineConfig
from pagoda.engine.engine import Engine
from pagoda.engine.request import Phase, Request, new_request
from pagoda.kernels.dispatch import choose_kernels
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.loader import load_model
from pagoda.sampling_params import SamplingParams

TRACE = Path(__file__).parents[2] / "shared" / "data" / "traces" / "AzureLLMInferenceTrace_2023_conv.csv.gz"


def trace_lengths(path: Path, count: int) -> list[tuple[int, int]]:
    """Prompt and output lengths of the first `count` requests."""
    with gzip.open(path, "rt") as file:
        rows = csv.DictReader(file)
        return [
            (int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row, _ in zip(rows, range(count), strict=False)
        ]


def requests(lengths: list[tuple[int, int]], vocabulary: int, context: int) -> list[Request]:
    generator = random.Random(0)
    made = []
    for index, (prompt_length, output_length) in enumerate(lengths):
        output = min(output_length, context // 2)
        prompt = [generator.randrange(10, vocabulary) for _ in range(min(prompt_length, context - output - 1))]
        made.append(new_request(str(index), prompt, SamplingParams(max_tokens=output, ignore_eos=True)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--block-size", type=int, default=32)
    arguments = parser.parse_args()
    config = EngineConfig(block_size=arguments.block_size)
    engine = Engine(load_model(EMBEDDED_MODEL), choose_kernels(config.environment), config)
    submitted = requests(
        trace_lengths(arguments.trace, arguments.requests), engine.model.vocab_size, engine.max_model_len
    )
    for request in submitted:
        engine.add(request)
    stored = allocated = whole_context = exact = 0
    while engine.has_work:
        engine.step()
        stats = engine.inspector.stats()
        running = [r for r in submitted if any(s.phase is Phase.RUNNING for s in r.sequences)]
        stored += stats.tokens_stored
        allocated += stats.token_slots_allocated
        whole_context += len(running) * engine.max_model_len
        exact += sum(len(r.prompt) + (r.params.max_tokens or 0) for r in running)
    print("| allocation | tokens stored / slots allocated |\n|---|---|")
    print(f"| pages of {arguments.block_size} tokens | {stored / allocated:.2%} |")
    print(f"| contiguous, the model's context of {engine.max_model_len} each | {stored / whole_context:.2%} |")
    print(f"| contiguous, the final length known beforehand | {stored / exact:.2%} |")
    engine.inspector.check_integrity()


if __name__ == "__main__":
    main()
