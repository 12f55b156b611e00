"""vLLM on the CPU, with its defaults and prefix caching."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from workloads import run


class VLLM:
    has_prefix_cache = True

    def __init__(self, checkpoint: Path, threads: int, kv_cache_dtype: str, program: str) -> None:  # noqa: ARG002
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
        os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "4"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        from vllm import LLM

        self._llm = LLM(
            str(checkpoint), dtype="bfloat16", skip_tokenizer_init=True, max_model_len=9000, enable_prefix_caching=True
        )

    def timed(self, prompts: list[list[int]], max_tokens: int) -> tuple[float, float]:
        """The offline class reports no times: the first token is timed by a request of its own where that is all
        there is.

        For longer runs the time to the first token is that of the same prompt again, cached by then, so decode speed
        is the difference of two runs that start alike.
        """
        last = self._generate(prompts, max_tokens)
        if max_tokens == 1:
            return last, last
        if len(prompts) > 1:
            return last, last
        return self._generate(prompts, 1), self._generate(prompts, max_tokens)

    def _generate(self, prompts: list[list[int]], max_tokens: int) -> float:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        inputs: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
        start = time.perf_counter()
        self._llm.generate(inputs, params, use_tqdm=False)
        return time.perf_counter() - start


if __name__ == "__main__":
    run(VLLM)
