"""The least time of a decode step that a plan tells, beside steps that are measured, on this machine.

python benchmarks/plan.py
python benchmarks/plan.py --model CHECKPOINT --users 1 4 16 --context 1024
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

from pagoda import plan
from pagoda.analysis.machines import find_machine
from pagoda.commands.shapes import shape_config
from pagoda.config import EngineConfig
from pagoda.engine.engine import Engine
from pagoda.engine.request import Request, RequestMetrics
from pagoda.kernels.dispatch import choose_kernels
from pagoda.models.loader import load_model, model_from_config
from pagoda.models.model import Model
from pagoda.sampling_params import SamplingParams
from pagoda.units import format_nbytes, format_seconds

SHAPE = "qwen2.5-0.5b"
STEPS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help=f"checkpoint (default: random weights of {SHAPE})")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--formats", nargs="+", default=["auto", "int8"])
    arguments = parser.parse_args()
    if arguments.model is None:
        source, model = SHAPE, model_from_config(shape_config(SHAPE), dtype="bfloat16")
    else:
        source, model = arguments.model, load_model(arguments.model, dtype="bfloat16")
    print("| pages in | users | reads | predicted at least | measured | of the floor's speed |")
    print("|---|---|---|---|---|---|")
    for format in arguments.formats:
        for users in arguments.users:
            print(row(model, source, format, users, arguments.context))


def row(model: Model, source: str | Path, format: str, users: int, context: int) -> str:
    """Both, and the bandwidth measured a moment before."""
    bandwidth = find_machine("this").bandwidth
    found = plan(source, bandwidth=bandwidth, users=users, context=context, kv_cache_dtype=format, dtype="bfloat16")
    floor = next(each for each in found.main.decode if each.users == users)
    measured = step_seconds(model, format, users, context)
    reads = format_nbytes(floor.weight_nbytes + floor.cache_nbytes)
    times = (format_seconds(floor.seconds), format_seconds(measured))
    return f"| {format} | {users} | {reads} | {' | '.join(times)} | {floor.seconds / measured:.0%} |"


def step_seconds(model: Model, format: str, users: int, context: int) -> float:
    """The median of steps in which all users decode, at about `context` tokens each."""
    config = EngineConfig(kv_cache_dtype=format, kv_cache_memory_bytes=4 << 30)
    engine = Engine(model, choose_kernels(config.environment), config)
    rng = random.Random(0)
    params = SamplingParams(temperature=0, max_tokens=STEPS + users * context // 2048 + 8, ignore_eos=True)
    for index in range(users):
        prompt = [rng.randrange(model.vocab_size) for _ in range(context - STEPS)]
        engine.add(Request(str(index), prompt, params, RequestMetrics(time.monotonic())))
    seconds = []
    while engine.has_work:
        start = time.perf_counter()
        events = engine.step()
        if len(events) == users:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


if __name__ == "__main__":
    main()
