"""OpenVINO GenAI: CHECKPOINT/openvino, written by `optimum-cli export openvino` with `--weight-format fp16`."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from workloads import run

CACHE_GIB = 4
BATCHED_TOKENS = 2048
PRECISIONS = {"": "bf16", "fp16": "f16", "int8": "u8", "int4": "u4"}


class OpenVINO:
    has_prefix_cache = True

    def __init__(self, checkpoint: Path, threads: int, variant: str, program: str) -> None:  # noqa: ARG002
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIB
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = BATCHED_TOKENS
        properties = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16",
            "KV_CACHE_PRECISION": PRECISIONS[variant],
        }
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(checkpoint / "openvino"), scheduler, "CPU", properties, {}
        )
        self._ids = count()

    def prepare(self, sequences: int, tokens: int) -> None: ...

    def timed(self, prompts: list[list[int]], max_tokens: int) -> tuple[float, float]:
        config = openvino_genai.GenerationConfig(max_new_tokens=max_tokens, ignore_eos=True, do_sample=False)
        config.stop_token_ids = set()
        config.set_eos_token_id(0)
        start = time.perf_counter()
        handles: list[Any] = [
            self._pipeline.add_request(next(self._ids), openvino.Tensor(np.array([prompt], dtype=np.int64)), config)
            for prompt in prompts
        ]
        first = None
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            if first is None and any(handle.can_read() for handle in handles):
                first = time.perf_counter() - start
        last = time.perf_counter() - start
        return last if first is None else first, last


if __name__ == "__main__":
    run(OpenVINO)
