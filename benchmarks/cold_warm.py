"""How often greedy tokens differ between a cold, a warm, a chunked and a batched run, and where it comes from.

    python benchmarks/cold_warm.py

200 questions the embedded model was not trained on. Attention reads the same bytes in every run (tests hold it); what
differs is the rounding of matrix products of another shape, which this prints beside the counts: the share of output
rows of one linear layer that change when the same row is computed alone or among others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from pagoda import LLM, RequestOutput, SamplingParams

EVAL = Path(__file__).parents[2] / "shared" / "data" / "eval" / "gsm8k_test.jsonl"


def differing(one: list[RequestOutput], other: list[RequestOutput]) -> int:
    """Prompts whose tokens are not the same in both runs."""
    return sum(a.outputs[0].token_ids != b.outputs[0].token_ids for a, b in zip(one, other, strict=True))


def rows_that_change(dtype: torch.dtype, rows: int = 64, width: int = 256, trials: int = 20) -> float:
    """Share of rows of a linear layer that are not bitwise the same alone and among `rows`."""
    torch.manual_seed(0)
    weight = torch.randn(704, width).to(dtype) * 0.05
    changed = 0
    for _ in range(trials):
        inputs = torch.randn(rows, width).to(dtype)
        together = torch.nn.functional.linear(inputs, weight)
        alone = torch.cat([torch.nn.functional.linear(row[None], weight) for row in inputs])
        changed += int((together != alone).any(dim=1).sum())
    return changed / (rows * trials)


def compare(dtype: str, prompts: list[str], params: SamplingParams) -> list[str]:
    with LLM(dtype=dtype) as llm:
        cold = [llm.generate(prompt, params)[0] for prompt in prompts]
        warm = [llm.generate(prompt, params)[0] for prompt in prompts]
    with LLM(dtype=dtype, max_num_batched_tokens=37, max_num_seqs=1) as llm:
        chunked = [llm.generate(prompt, params)[0] for prompt in prompts]
    with LLM(dtype=dtype) as llm:
        batched = llm.generate(prompts, params, use_tqdm=False)
    counts = [differing(cold, other) for other in (warm, chunked, batched)]
    changed = rows_that_change(getattr(torch, dtype))
    return [dtype, *(f"{count} of {len(prompts)}" for count in counts), f"{changed:.1%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=EVAL, help="JSON lines with a question each")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    lines = arguments.data.read_text().splitlines()[: arguments.prompts]
    prompts = [json.loads(line)["question"] for line in lines]
    params = SamplingParams(temperature=0, max_tokens=arguments.tokens)
    print("| | cold / warm | cold / chunks of 37 | cold / batched | linear rows that change alone / among 64 |")
    print("|---" * 5 + "|")
    for dtype in ("float32", "bfloat16"):
        print("| " + " | ".join(compare(dtype, prompts, params)) + " |", flush=True)


if __name__ == "__main__":
    main()
