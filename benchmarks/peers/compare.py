r"""Runs the same workloads on Pagoda and its peers, interleaved, and prints medians with their spread.

    python benchmarks/peers/compare.py CHECKPOINT --peer transformers=PYTHON --peer vllm=PYTHON \
        --peer openvino=PYTHON --peer "openvino int8=PYTHON" --peer llama=LLAMA_SERVER

Each engine runs in the environment whose interpreter is given, llama.cpp as the server program that is given, Pagoda in
this environment. A name may end in a format of the cache. Every round starts every engine
once, in a process of its own, and reads memory at full speed beside them, so that a slow spell of the machine shows.
Nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from workloads import WORKLOADS

HERE = Path(__file__).parent
READ_NBYTES = 3 << 30
# Engines that are programs, not packages: their adapters run in this environment.
PROGRAMS = ("llama",)


def run_engine(name: str, path: str, checkpoint: Path, workloads: list[str], seed: int) -> dict[str, float]:
    """The figures of one process, which prints them as a line of JSON; `path` is its interpreter or the program."""
    name, _, kv_cache_dtype = name.partition(" ")
    python = sys.executable if name in PROGRAMS else path
    options = ["--seed", str(seed), "--kv-cache-dtype", kv_cache_dtype or "auto", "--program", path]
    command = [python, str(HERE / f"{name}_engine.py"), str(checkpoint), *workloads, *options]
    # The package is installed where it is needed: nothing of this process's path must leak into another environment.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | preloads(name, python)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    # Engines may log to the same stream, also while they shut down.
    answer = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
    figures: dict[str, float] = json.loads(answer)
    return figures


def preloads(name: str, python: str) -> dict[str, str]:
    """vLLM asks for these libraries on a CPU; they are used where they are installed."""
    if name != "vllm":
        return {}
    wanted = [*Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"), Path(python).parent.parent / "lib" / "libiomp5.so"]
    return {"LD_PRELOAD": ":".join(str(path) for path in wanted if path.exists())}


def read_bandwidth() -> float:
    """GB/s of a plain read by two threads."""
    from pagoda.kernels.native import read_bandwidth as measure

    return float(measure(READ_NBYTES, 2))


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """One line per figure, one column per engine: median (lowest to highest)."""
    metrics = list(dict.fromkeys(metric for figures in results.values() for metric in figures))
    lines = ["| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for metric in metrics:
        cells = [figures.get(metric, []) for figures in results.values()]
        shown = [f"{statistics.median(v):.3g} ({min(v):.3g} to {max(v):.3g})" if v else "-" for v in cells]
        lines.append(f"| {metric} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def plot(results: dict[str, dict[str, list[float]]], path: Path) -> None:
    """How many times as fast as the slowest engine each one is, by workload."""
    from matplotlib import pyplot as plt

    engines = {name: figures for name, figures in results.items() if name != "machine"}
    metrics = [m for m in engines["pagoda"] if m.endswith((", s", "tok/s"))]
    figure, axes = plt.subplots(figsize=(9, 0.7 * len(metrics) + 1.2), layout="constrained")
    height = 0.8 / len(engines)
    for row, (name, figures) in enumerate(engines.items()):
        speeds = {}
        for place, metric in enumerate(metrics):
            medians = [statistics.median(each[metric]) for each in engines.values() if metric in each]
            if metric in figures:
                own = statistics.median(figures[metric])
                speeds[place + row * height] = max(medians) / own if metric.endswith(", s") else own / min(medians)
        axes.barh(list(speeds), list(speeds.values()), height, label=name)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(metrics))], metrics)
    axes.invert_yaxis()
    axes.set_xlabel("speed, as a multiple of the slowest engine's")
    axes.legend()
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="written by benchmarks/shapes.py")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help="see above")
    parser.add_argument("--formats", nargs="+", default=[], help="formats of Pagoda's pages, beside its default")
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures of all rounds here")
    parser.add_argument("--plot", type=Path, help="draw the medians here, as PNG")
    arguments = parser.parse_args()
    own = ["pagoda", *(f"pagoda {format}" for format in arguments.formats)]
    engines = dict.fromkeys(own, sys.executable) | dict(peer.split("=", 1) for peer in arguments.peer)
    results: dict[str, dict[str, list[float]]] = {name: {} for name in engines} | {"machine": {}}
    for round in range(arguments.rounds):
        results["machine"].setdefault("read bandwidth, GB/s", []).append(read_bandwidth())
        for name, path in engines.items():
            for metric, value in run_engine(name, path, arguments.checkpoint, arguments.workloads, round).items():
                results[name].setdefault(metric, []).append(value)
            print(f"round {round + 1}: {name} {json.dumps(results[name])}", file=sys.stderr, flush=True)
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
