"""Pagoda as a peer. A variant is a format of pages, or "weights-int8" and "weights-int4"."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from workloads import run

from pagoda import LLM, SamplingParams

CACHE_NBYTES = 4 << 30
WEIGHTS = "weights-"


class Pagoda:
    has_prefix_cache = True

    def __init__(self, checkpoint: Path, threads: int, variant: str, program: str) -> None:  # noqa: ARG002
        is_of_weights = variant.startswith(WEIGHTS)
        self._llm = LLM(
            checkpoint,
            num_threads=threads,
            kv_cache_memory_bytes=CACHE_NBYTES,
            kv_cache_dtype="auto" if is_of_weights else variant or "auto",
            quantization=variant.removeprefix(WEIGHTS) if is_of_weights else "none",
            skip_tokenizer_init=True,
        )

    def prepare(self, sequences: int, tokens: int) -> None: ...

    def timed(self, prompts: list[list[int]], max_tokens: int) -> tuple[float, float]:
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)

        async def arrivals(prompt: list[int]) -> tuple[float, float]:
            times = [time.perf_counter() async for chunk in self._llm.stream_async(prompt, params) if chunk.token_ids]
            return times[0], times[-1]

        async def together() -> list[tuple[float, float]]:
            return await asyncio.gather(*(arrivals(prompt) for prompt in prompts))

        start = time.perf_counter()
        times = asyncio.run(together())
        return min(first for first, _ in times) - start, max(last for _, last in times) - start


if __name__ == "__main__":
    run(Pagoda)
