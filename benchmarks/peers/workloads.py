"""What every engine is asked to do, and how it is timed. Imports no engine: each runs in an environment of its own.

An adapter offers `timed(prompts, max_tokens) -> (seconds to the first token, seconds to the last)` for prompts sent
together, by a clock that is read where the prompts are sent and the tokens arrive; `has_prefix_cache`; and
`prepare(sequences, tokens)`, which is told how many sequences come at once and how long each gets. Prompts are random
token ids; each use of `Prompts` gives others, so nothing is cached by accident.

On a virtual machine the host may take the processors away; Linux counts that as stolen time. A workload is done again
if much was stolen meanwhile, and the try that lost least is the one that counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

VOCABULARY = 120_000  # less than any of the shapes has
DECODED = 32
# A workload during which the host took a larger share of the processors is done again, so many times in all.
MOST_STOLEN = 0.02
TRIES = 4


class Prompts:
    """Fresh random prompts."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def tokens(self, length: int) -> list[int]:
        return [self._random.randrange(VOCABULARY) for _ in range(length)]


def single(engine: Any, prompts: Prompts, length: int) -> dict[str, float]:
    """One fresh prompt: time to first token, and tokens per second after it."""
    first, last = engine.timed([prompts.tokens(length)], DECODED + 1)
    return {f"ttft of {length} tokens, s": first, f"decode at {length}, tok/s": DECODED / (last - first)}


def cached(engine: Any, prompts: Prompts, length: int) -> dict[str, float]:
    """Time to first token of a prompt that was just answered."""
    if not engine.has_prefix_cache:
        return {}
    prompt = prompts.tokens(length)
    engine.timed([prompt], 2)
    return {f"ttft of {length} cached tokens, s": min(engine.timed([prompt], 1)[0] for _ in range(3))}


def extended(engine: Any, prompts: Prompts, length: int) -> dict[str, float]:
    """Time to first token of a prompt that was just answered, with 32 new tokens behind it."""
    if not engine.has_prefix_cache:
        return {}
    prompt = prompts.tokens(length)
    engine.timed([prompt], 2)
    seconds = min(engine.timed([prompt + prompts.tokens(32)], 1)[0] for _ in range(3))
    return {f"ttft of {length} cached + 32 tokens, s": seconds}


def batch(engine: Any, prompts: Prompts, size: int) -> dict[str, float]:
    """Tokens generated per second by `size` requests at once, 512 tokens in and 64 out each."""
    seconds = engine.timed([prompts.tokens(512) for _ in range(size)], 64)[1]
    return {f"{size} x (512 in, 64 out), output tok/s": size * 64 / seconds}


def shared(engine: Any, prompts: Prompts, length: int) -> dict[str, float]:
    """16 requests at once: a shared prefix, 32 tokens of their own, 32 tokens out; then 16 more on the same prefix."""
    if not engine.has_prefix_cache:
        return {}
    prefix = prompts.tokens(length)
    cold, warm = (engine.timed([prefix + prompts.tokens(32) for _ in range(16)], 32)[1] for _ in range(2))
    return {f"16 x ({length} shared + 32), cold, s": cold, f"16 x ({length} shared + 32), warm, s": warm}


class Workload(NamedTuple):
    """`run` gets engine and prompts; `sequences` of at most `tokens` each are in the engine at once."""

    run: Callable[[Any, Prompts], dict[str, float]]
    sequences: int
    tokens: int


def singles(*lengths: int) -> dict[str, Workload]:
    return {f"single-{length}": Workload(partial(single, length=length), 1, length + DECODED + 1) for length in lengths}


WORKLOADS = singles(512, 2048, 8192, 32000) | {
    "cached-2048": Workload(partial(cached, length=2048), 1, 2048 + 2),
    "extended-2048": Workload(partial(extended, length=2048), 1, 2048 + 32 + 2),
    "batch-8": Workload(partial(batch, size=8), 8, 512 + 64),
    "batch-32": Workload(partial(batch, size=32), 32, 512 + 64),
    "shared-2048": Workload(partial(shared, length=2048), 16, 2048 + 32 + 32),
}


def processor_ticks() -> tuple[int, int]:
    """Of all processors since the start: what the host took away, and everything."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


def measure(engine: Any, prompts: Prompts, name: str) -> dict[str, float]:
    """The figures of the try that the host disturbed least, and the share of the processors that it took then."""
    engine.prepare(WORKLOADS[name].sequences, WORKLOADS[name].tokens)
    tries = []
    while len(tries) < TRIES and not any(share <= MOST_STOLEN for share, _ in tries):
        stolen, total = processor_ticks()
        figures = WORKLOADS[name].run(engine, prompts)
        now_stolen, now_total = processor_ticks()
        tries.append(((now_stolen - stolen) / max(now_total - total, 1), figures))
    share, figures = min(tries, key=lambda each: each[0])
    return figures | {f"stolen during {name}, %": 100 * share}


def peak_memory_nbytes() -> int:
    """The largest resident memory so far of this process and of those it started, summed."""
    peaks: dict[int, int] = {}
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        parents[int(status.parent.name)] = int(fields["PPid"])
        peaks[int(status.parent.name)] = int(fields.get("VmHWM", "0 kB").split()[0]) * 1024
    family = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(peaks[process] for process in family)


def run(make_engine: Callable[[Path, int, str, str], Any]) -> None:
    """The command line of an adapter, which runs the workloads whose names it reads.

    It answers with a line of JSON each time: nothing yet when it is ready, then figures, and the memory at the end.
    """
    parser = argparse.ArgumentParser(description="Run workloads on one engine and print their figures as JSON.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--variant", default="", help="a format of the cache or a way of running, where there are several"
    )
    parser.add_argument("--program", default="", help="the engine's, if it is no Python package")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    engine = make_engine(arguments.checkpoint, arguments.threads, arguments.variant, arguments.program)
    prompts = Prompts(arguments.seed)
    engine.prepare(1, 1024)
    engine.timed([prompts.tokens(600)], 4)  # first use: compile, allocate, page in the weights
    tell({})
    for line in sys.stdin:
        tell(measure(engine, prompts, line.strip()))
    tell({"peak memory, GiB": peak_memory_nbytes() / 2**30})


def tell(figures: dict[str, float]) -> None:
    sys.stdout.write(f"{json.dumps(figures)}\n")
    sys.stdout.flush()
