"""Where a decode step's time goes: the share spent outside the model's forward pass.

python benchmarks/step.py CHECKPOINT --batch 32 --context 512
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from typing import Any

from pagoda.config import EngineConfig
from pagoda.engine.engine import Engine
from pagoda.engine.request import new_request
from pagoda.kernels.dispatch import choose_kernels
from pagoda.models.loader import load_model
from pagoda.sampling_params import SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="written by benchmarks/shapes.py")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    config = EngineConfig(kv_cache_memory_bytes=4 << 30)
    engine = Engine(load_model(arguments.checkpoint), choose_kernels(config.environment), config)
    inside: list[float] = []
    forward = engine.model.forward

    def timed(*inputs: Any) -> Any:
        start = time.perf_counter()
        logits = forward(*inputs)
        inside.append(time.perf_counter() - start)
        return logits

    engine.model.forward = timed  # type: ignore[method-assign]
    generator = random.Random(0)
    for index in range(arguments.batch):
        prompt = [generator.randrange(engine.model.vocab_size) for _ in range(arguments.context)]
        params = SamplingParams(temperature=0, max_tokens=arguments.steps + 8, ignore_eos=True)
        engine.add(new_request(str(index), prompt, params))
    steps: list[tuple[float, float]] = []
    while engine.has_work:
        start = time.perf_counter()
        events = engine.step()
        if len(events) == arguments.batch:  # all of them decode: none is in prefill, none has ended
            steps.append((inside[-1], time.perf_counter() - start))
    total = [whole for _, whole in steps]
    outside = [1 - model / whole for model, whole in steps]
    print(f"decode step of {arguments.batch} sequences at {arguments.context}: {statistics.median(total) * 1e3:.2f} ms")
    print(f"outside the model: {statistics.median(outside):.2%} (from {min(outside):.2%} to {max(outside):.2%})")


if __name__ == "__main__":
    main()
