"""Pagoda as a peer."""

from __future__ import annotations

from pathlib import Path

from workloads import run

from pagoda import LLM, SamplingParams


class Pagoda:
    has_prefix_cache = True

    def __init__(self, checkpoint: Path, threads: int, kv_cache_dtype: str, program: str) -> None:  # noqa: ARG002
        memory = 4 << 30
        self._llm = LLM(checkpoint, num_threads=threads, kv_cache_memory_bytes=memory, kv_cache_dtype=kv_cache_dtype)

    def timed(self, prompts: list[list[int]], max_tokens: int) -> tuple[float, float]:
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        metrics = [output.metrics for output in self._llm.generate(prompts, params, use_tqdm=False)]
        start = min(metric.arrival for metric in metrics)
        first = min(metric.first_token for metric in metrics if metric.first_token is not None)
        last = max(metric.last_token for metric in metrics if metric.last_token is not None)
        return first - start, last - start


if __name__ == "__main__":
    run(Pagoda)
