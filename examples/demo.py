"""The main job in one minute: a real prompt, cold, then warm, then without a cache, and what each of them cost.

Uses the embedded model unless a checkpoint is named: `python examples/demo.py [CHECKPOINT]`. "Without a cache" is the
same engine and the same kernels with nothing kept from token to token: every token is a new request that computes the
whole sequence.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pagoda import LLM, RequestOutput, SamplingParams
from pagoda.commands.report import CacheWatch, RequestCost, table
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.loader import load_model
from pagoda.units import format_rate, format_seconds

PROMPT = Path(__file__).parent / "prompts" / "copperfield.txt"
OUTPUT_TOKENS = 64
UNCACHED_TOKENS = 32  # a token without a cache costs as much as the whole prompt
CACHE_NBYTES = 256 << 20
# The penalty keeps a small model from repeating itself; it counts prompt and output alike, so all runs agree on it.
GREEDY = SamplingParams(temperature=0, repetition_penalty=1.3, ignore_eos=True)


@dataclass(frozen=True)
class Uncached:
    """Generation that computes the whole sequence for every token."""

    token_ids: list[int]
    num_computed_tokens: int
    ttft_seconds: float
    tokens_per_second: float


def main() -> None:
    console = Console()
    checkpoint = Path(sys.argv[1]) if len(sys.argv) > 1 else EMBEDDED_MODEL
    prompt = PROMPT.read_text(encoding="utf-8").removesuffix("\n")
    model = load_model(checkpoint)
    with LLM(model, tokenizer=checkpoint, kv_cache_memory_bytes=CACHE_NBYTES) as llm:
        # The first forward pass of a process sets up threads and buffers; keep that out of what is compared.
        llm.generate("Hello.", SamplingParams(max_tokens=2))
        console.print(f"[dim]… {prompt[-300:]}[/]")
        cold, cache = stream(llm, prompt, console, "cold")
        warm, _ = stream(llm, prompt, console, "warm")
        kernels, cache_rows = llm.engine.kernels.name, cache.rows()
        llm.check_integrity()
    with LLM(model, kv_cache_memory_bytes=CACHE_NBYTES, enable_prefix_caching=False) as llm:
        llm.generate([cold.prompt_token_ids[:8]], SamplingParams(max_tokens=1))
        uncached = without_cache(llm, cold)
    console.print(comparison(cold, warm, uncached))
    console.print(table([*cache_rows, ("kernels", kernels), ("same tokens", agreement(cold, warm, uncached))]))
    console.print(
        "[dim]without cache: the same engine and kernels, but each token computes the whole sequence again; "
        f"{UNCACHED_TOKENS} tokens measured[/]"
    )


def stream(llm: LLM, prompt: str, console: Console, title: str) -> tuple[RequestOutput, CacheWatch]:
    """Generate greedily, showing the text as it comes."""
    console.rule(title, align="left", style="dim")
    cache = CacheWatch(llm)
    params = replace(GREEDY, max_tokens=OUTPUT_TOKENS)
    for chunk in llm.stream(prompt, params):
        sys.stdout.write(chunk.text)
        sys.stdout.flush()
        if chunk.output is None:
            cache.tick()
    sys.stdout.write("\n")
    assert chunk.output is not None
    return chunk.output, cache


def without_cache(llm: LLM, cold: RequestOutput) -> Uncached:
    """The first tokens of the cached run once more, each from nothing but the tokens before it."""
    params = replace(GREEDY, max_tokens=1)
    expected = cold.outputs[0].token_ids[:UNCACHED_TOKENS]
    outputs = [llm.generate([cold.prompt_token_ids + expected[:i]], params)[0] for i in range(len(expected))]
    times = [output.metrics.ttft_seconds or 0.0 for output in outputs]
    return Uncached(
        token_ids=[output.outputs[0].token_ids[0] for output in outputs],
        num_computed_tokens=sum(output.metrics.num_computed_tokens for output in outputs),
        ttft_seconds=times[0],
        tokens_per_second=(len(times) - 1) / sum(times[1:]),
    )


def comparison(cold: RequestOutput, warm: RequestOutput, uncached: Uncached) -> Table:
    grid = Table("", "cold", "warm", "without cache", box=None, padding=(0, 3, 0, 0))
    costs = [RequestCost.of(cold), RequestCost.of(warm)]
    grid.add_row("prompt tokens", *(f"{cost.num_prompt_tokens:,}" for cost in costs), f"{costs[0].num_prompt_tokens:,}")
    grid.add_row("  served from cache", *(f"{cost.num_cached_tokens:,}" for cost in costs), "0")
    waits = [*(cost.ttft_seconds for cost in costs), uncached.ttft_seconds]
    grid.add_row("time to first token", *(format_seconds(wait) for wait in waits))
    rates = [*(cost.decode_tokens_per_second for cost in costs), uncached.tokens_per_second]
    grid.add_row("decode", *(format_rate(rate, "tokens") for rate in rates))
    computed = [*(cost.num_computed_tokens for cost in costs), uncached.num_computed_tokens]
    grid.add_row("positions computed", *(f"{count:,}" for count in computed))
    return grid


def agreement(cold: RequestOutput, warm: RequestOutput, uncached: Uncached) -> str:
    """How many of the greedy tokens are those of the cold run."""
    expected = cold.outputs[0].token_ids
    runs = {"warm": warm.outputs[0].token_ids, "without cache": uncached.token_ids}
    counts = {name: sum(a == b for a, b in zip(expected, tokens, strict=False)) for name, tokens in runs.items()}
    return ", ".join(f"{name} {count} of {len(runs[name])}" for name, count in counts.items())


if __name__ == "__main__":
    main()
