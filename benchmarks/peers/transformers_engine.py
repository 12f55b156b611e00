"""Hugging Face `generate()` with its defaults: SDPA, dynamic cache, greedy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import BaseStreamer
from workloads import run


class Clock(BaseStreamer):  # type: ignore[misc]
    """Notes when each token arrives; the first call is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:  # noqa: ARG002
        self.times.append(time.perf_counter())

    def end(self) -> None: ...


class Transformers:
    has_prefix_cache = False

    def __init__(self, checkpoint: Path, threads: int, variant: str, program: str) -> None:  # noqa: ARG002
        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()

    def prepare(self, sequences: int, tokens: int) -> None: ...

    def timed(self, prompts: list[list[int]], max_tokens: int) -> tuple[float, float]:
        clock = Clock()
        config = GenerationConfig(max_new_tokens=max_tokens, do_sample=False, pad_token_id=0)
        start = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(torch.tensor(prompts), generation_config=config, streamer=clock)
        return clock.times[1] - start, clock.times[-1] - start


if __name__ == "__main__":
    run(Transformers)
