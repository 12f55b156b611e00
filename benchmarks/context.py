"""Tokens per second against context, with the cache and without it: linear against quadratic work.

    python benchmarks/context.py --plot docs/images/context.png

With the cache a token costs one decode step over the pages of its context. Without it every token costs a forward
pass over the whole sequence, measured as the prefill of a prompt of that length that shares nothing.
"""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path

from pagoda import LLM, SamplingParams

DECODED = 16


def measure(llm: LLM, context: int, generator: random.Random) -> tuple[float, float]:
    """Tokens per second at `context` tokens, with the cache and without."""
    prompt = [generator.randrange(10, llm.engine.model.vocab_size) for _ in range(context)]
    params = SamplingParams(temperature=0, max_tokens=DECODED + 1, ignore_eos=True)
    metrics = llm.generate(prompt, params)[0].metrics
    assert metrics.ttft_seconds is not None
    return 1 / statistics.median(metrics.inter_token_seconds), 1 / metrics.ttft_seconds


def plot(rows: list[tuple[int, float, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    contexts, cached, uncached = zip(*rows, strict=True)
    axes.loglog(contexts, cached, "o-", color="#1b6ca8", label="with the KV cache")
    axes.loglog(contexts, uncached, "s--", color="#c0504d", label="without (whole sequence for every token)")
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("tokens per second")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory of a checkpoint (default: the embedded model)")
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="write a PNG here")
    arguments = parser.parse_args()
    generator = random.Random(0)
    rows = []
    with LLM(arguments.model, max_num_batched_tokens=max(arguments.contexts)) as llm:
        measure(llm, 64, generator)
        print("| context | with cache, tok/s | without, tok/s | ratio |\n|---|---|---|---|")
        for context in arguments.contexts:
            runs = [measure(llm, context, generator) for _ in range(arguments.repeats)]
            cached, uncached = (statistics.median(values) for values in zip(*runs, strict=True))
            rows.append((context, cached, uncached))
            print(f"| {context} | {cached:.1f} | {uncached:.2f} | {cached / uncached:.1f} |", flush=True)
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
