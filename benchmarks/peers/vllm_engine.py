"""vLLM on the CPU, with its defaults and prefix caching."""

from __future__ import annotations

import os
import time
from itertools import count
from pathlib import Path
from typing import Any

from workloads import run

LONGEST = 32_768


class VLLM:
    has_prefix_cache = True

    def __init__(self, checkpoint: Path, threads: int, variant: str, program: str) -> None:  # noqa: ARG002
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
        os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "4"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        from vllm import LLM

        options: dict[str, Any] = {"max_model_len": LONGEST, "enable_prefix_caching": True, "skip_tokenizer_init": True}
        self._engine = LLM(str(checkpoint), dtype="bfloat16", **options).llm_engine
        self._ids = count()

    def prepare(self, sequences: int, tokens: int) -> None: ...

    def timed(self, prompts: list[list[int]], max_tokens: int) -> tuple[float, float]:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        for prompt in prompts:
            self._engine.add_request(str(next(self._ids)), {"prompt_token_ids": prompt}, params)
        first = None
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            if first is None and any(output.outputs[0].token_ids for output in outputs):
                first = time.perf_counter() - start
        last = time.perf_counter() - start
        return last if first is None else first, last


if __name__ == "__main__":
    run(VLLM)
