r"""Runs the same workloads on Pagoda and its peers, interleaved, and prints medians with their spread.

    python benchmarks/peers/compare.py CHECKPOINT --peer transformers=PYTHON --peer vllm=PYTHON \
        --peer openvino=PYTHON --peer llama=LLAMA_SERVER --peer "llama unified=LLAMA_SERVER"

Each engine runs in the environment whose interpreter is given, llama.cpp as the server program that is given, Pagoda in
this environment. A name may end in a variant, such as a format of the cache. Every round starts every engine once, in
another order, and reads memory at full speed before and after each workload: where the processors of a virtual machine
share a part of the host's, they read at another speed from one minute to the next. `--least-bandwidth` waits for the
better minutes. A process has ended, and so has every process that it started, before the next one starts; what fails is
reported at the end. Figures are written to a file as they come. Nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import psutil
from workloads import WORKLOADS

HERE = Path(__file__).parent
READ_NBYTES = 1 << 30
# Seconds to wait for a bandwidth, and between two looks.
MOST_WAITING = 90
PAUSE = 1
# Engines that are programs, not packages: their adapters run in this environment.
PROGRAMS = ("llama",)
PR_SET_CHILD_SUBREAPER = 36
# Seconds in which processes end after they were asked to.
GRACE = 10

Results = dict[str, list[dict[str, float]]]  # of each engine the figures of each round, as many as there are


class EngineError(Exception):
    """An engine's process ended badly; the message is the end of what it said."""


def run_engine(name: str, path: str, arguments: argparse.Namespace, seed: int) -> Iterator[dict[str, float]]:
    """The figures of one process, workload by workload; `path` is its interpreter or the program."""
    engine, _, variant = name.partition(" ")
    python = sys.executable if engine in PROGRAMS else path
    options = ["--seed", str(seed), "--variant", variant, "--program", path]
    command = [python, str(HERE / f"{engine}_engine.py"), str(arguments.checkpoint), *options]
    # The package is installed where it is needed: nothing of this process's path must leak into another environment.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | preloads(engine, python)
    with tempfile.TemporaryFile("w+") as said:
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, text=True, env=environment)
        limit = threading.Timer(arguments.limit, end_children)  # those, too, keep the pipe open
        limit.start()
        try:
            yield answer(process)
            for workload in arguments.workloads:
                before = await_bandwidth(arguments.least_bandwidth)
                figures = answer(process, workload)
                yield figures | {f"read during {workload}, GB/s": (before + read_bandwidth()) / 2}
            yield answer(process, last=True)
            process.wait()
        except (BrokenPipeError, EngineError):
            process.kill()
            said.seek(0)
            raise EngineError(said.read()[-3000:]) from None
        finally:
            limit.cancel()
            end_children()


def answer(process: subprocess.Popen[str], workload: str = "", *, last: bool = False) -> dict[str, float]:
    """The next line of JSON, after it was told a workload, or that there are no more; engines may log in between."""
    assert process.stdin
    assert process.stdout
    if workload:
        process.stdin.write(f"{workload}\n")
        process.stdin.flush()
    if last:
        process.stdin.close()
    for line in process.stdout:
        if line.startswith("{"):
            figures: dict[str, float] = json.loads(line)
            return figures
    raise EngineError


def end_children() -> None:
    """Return once every process that was started from here, by whatever process, has ended.

    Orphans are this process's children (see `main`).
    """
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    _, alive = psutil.wait_procs(children, GRACE)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(alive)


def preloads(engine: str, python: str) -> dict[str, str]:
    """vLLM asks for these libraries on a CPU; they are used where they are installed."""
    if engine != "vllm":
        return {}
    wanted = [*Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"), Path(python).parent.parent / "lib" / "libiomp5.so"]
    return {"LD_PRELOAD": ":".join(str(path) for path in wanted if path.exists())}


def read_bandwidth() -> float:
    """GB/s of a plain read by two threads."""
    from pagoda.kernels.native_calls import read_bandwidth as measure

    return float(measure(READ_NBYTES, 2))


def await_bandwidth(least: float) -> float:
    """GB/s, at least so many unless that takes too long."""
    end = time.monotonic() + MOST_WAITING
    while (found := read_bandwidth()) < least and time.monotonic() < end:
        time.sleep(PAUSE)
    return found


def in_turn(names: list[str], round: int) -> list[str]:
    """The engines in the order of a round: each comes first once in as many rounds as there are engines."""
    start = round % len(names)
    return names[start:] + names[:start]


def is_speed(metric: str) -> bool:
    return metric.endswith((", s", "tok/s"))


def is_faster_lower(metric: str) -> bool:
    return metric.endswith(", s")


def against_best(results: Results, metric: str) -> list[float]:
    """For each round how many times as fast as the best peer, in whatever variant, Pagoda with its defaults is.

    Rounds in which either has no figure are left out.
    """
    if not is_speed(metric):
        return []
    peers = [rounds for name, rounds in results.items() if not name.startswith("pagoda")]
    ratios = []
    for mine, *others in zip(results["pagoda"], *peers, strict=False):
        theirs = [figures[metric] for figures in others if metric in figures]
        if theirs and metric in mine:
            ratios.append(min(theirs) / mine[metric] if is_faster_lower(metric) else mine[metric] / max(theirs))
    return ratios


def values(rounds: list[dict[str, float]], metric: str) -> list[float]:
    return [figures[metric] for figures in rounds if metric in figures]


def table(results: Results) -> str:
    """One line per figure, one column per engine: median (lowest to highest); and Pagoda beside its best peer."""
    metrics = list(dict.fromkeys(metric for rounds in results.values() for figures in rounds for metric in figures))
    heads = [*results, "pagoda to the best peer"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for metric in metrics:
        cells = [values(rounds, metric) for rounds in results.values()]
        shown = [spread(each, ".3g") for each in [*cells, against_best(results, metric)]]
        lines.append(f"| {metric} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def spread(found: list[float], form: str) -> str:
    if not found:
        return "-"
    return f"{statistics.median(found):{form}} ({min(found):{form}} to {max(found):{form}})"


def plot(results: Results, path: Path) -> None:
    """How many times as fast as the slowest engine each one is, by workload."""
    from matplotlib import pyplot as plt

    metrics = [metric for metric in dict.fromkeys(chain(*results["pagoda"])) if is_speed(metric)]
    figure, axes = plt.subplots(figsize=(9, 0.7 * len(metrics) + 1.2), layout="constrained")
    height = 0.8 / len(results)
    for row, (name, rounds) in enumerate(results.items()):
        speeds = {}
        for place, metric in enumerate(metrics):
            medians = [statistics.median(found) for each in results.values() if (found := values(each, metric))]
            if found := values(rounds, metric):
                own = statistics.median(found)
                speeds[place + row * height] = max(medians) / own if is_faster_lower(metric) else own / min(medians)
        axes.barh(list(speeds), list(speeds.values()), height, label=name)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(metrics))], metrics)
    axes.invert_yaxis()
    axes.set_xlabel("speed, as a multiple of the slowest engine's")
    axes.legend()
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="written by benchmarks/shapes.py, or a GGUF file")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help="see above")
    parser.add_argument("--formats", nargs="+", default=[], help="formats of Pagoda's pages, beside its default")
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--limit", type=float, default=3600, metavar="SECONDS", help="a process that runs longer is ended"
    )
    parser.add_argument("--least-bandwidth", type=float, default=0, metavar="GB/S", help="waited for, for a while")
    parser.add_argument("--json", type=Path, help="write all figures here, after each workload")
    parser.add_argument("--plot", type=Path, help="draw the medians here, as PNG")
    arguments = parser.parse_args()
    # What an engine leaves running when it ends becomes a child of this process, which ends it too.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    own = ["pagoda", *(f"pagoda {format}" for format in arguments.formats)]
    engines = dict.fromkeys(own, sys.executable) | dict(peer.split("=", 1) for peer in arguments.peer)
    results: Results = {name: [] for name in engines}
    failures = []
    for round in range(arguments.rounds):
        for name in in_turn(list(engines), round):
            results[name].append({})
            try:
                for figures in run_engine(name, engines[name], arguments, round):
                    results[name][-1] |= figures
                    if arguments.json:
                        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
                    print(f"round {round + 1}: {name} {json.dumps(figures)}", file=sys.stderr, flush=True)
            except EngineError as error:
                failures.append(f"round {round + 1}: {name} failed: {error}")
                print(failures[-1], file=sys.stderr, flush=True)
    print(table(results))
    if arguments.plot:
        plot(results, arguments.plot)
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
