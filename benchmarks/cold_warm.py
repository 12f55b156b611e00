"""How often greedy tokens, or bits of their probabilities, differ between a cold, a warm, a chunked and a batched run.

    python benchmarks/cold_warm.py
    python benchmarks/cold_warm.py --model ~/models/Qwen2.5-0.5B-Instruct --prompts 200

200 questions, with the products of long prompts left to torch and, as `deterministic` wants, to our own kernels alone.
Attention reads the same bytes in every run (tests hold it); what differs is how torch rounds products of another shape.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pagoda import LLM, RequestOutput, SamplingParams

EVAL = Path(__file__).parents[2] / "shared" / "data" / "eval" / "gsm8k_test.jsonl"
CHUNK_TOKENS = 37
MODES = (("float32", False), ("bfloat16", False), ("bfloat16", True))


def differing(one: list[RequestOutput], other: list[RequestOutput]) -> str:
    """Prompts whose tokens are not the same in both runs, and those of which any logarithm of a probability is not."""
    pairs = [(a.outputs[0], b.outputs[0]) for a, b in zip(one, other, strict=True)]
    tokens = sum(a.token_ids != b.token_ids for a, b in pairs)
    return f"{tokens}; {sum(a.logprobs != b.logprobs for a, b in pairs)}"


def compare(model: Path | None, dtype: str, deterministic: bool, prompts: list[str], params: SamplingParams) -> str:
    options = {"dtype": dtype, "deterministic": deterministic}
    with LLM(model, **options) as llm:
        cold = [llm.generate(prompt, params)[0] for prompt in prompts]
        warm = [llm.generate(prompt, params)[0] for prompt in prompts]
    with LLM(model, max_num_batched_tokens=CHUNK_TOKENS, max_num_seqs=1, **options) as llm:
        chunked = [llm.generate(prompt, params)[0] for prompt in prompts]
    with LLM(model, **options) as llm:
        batched = llm.generate(prompts, params, use_tqdm=False)
    counts = " | ".join(differing(cold, other) for other in (warm, chunked, batched))
    return f"| {dtype}{', deterministic' * deterministic} | {counts} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint directory (default: the embedded model)")
    parser.add_argument("--data", type=Path, default=EVAL, help="JSON lines with a question each")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    lines = arguments.data.read_text().splitlines()[: arguments.prompts]
    prompts = [json.loads(line)["question"] for line in lines]
    params = SamplingParams(temperature=0, max_tokens=arguments.tokens, logprobs=1)
    print(f"Of {len(prompts)} prompts those with other tokens; with other bits than a cold run:\n")
    print(f"| | warm | chunks of {CHUNK_TOKENS} | batched |\n|---|---|---|---|")
    for dtype, deterministic in MODES:
        print(compare(arguments.model, dtype, deterministic, prompts, params), flush=True)


if __name__ == "__main__":
    main()
