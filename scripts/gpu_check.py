"""Everything that needs the card, in one command: right numbers, same bits, whole models, pages in tiers, speed.

    python scripts/gpu_check.py --output results.json [--parts conformance,models,...] [--sweep]

Every part runs in processes of its own with a time limit, and results are written after each, so that one failure loses
nothing else; a process that takes too long says first where it is. What takes long is compiling, so all kernels are
compiled first, by many processes, while they check numbers; then timings run alone.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Nothing need be installed but torch and Triton.
sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("src", "tests")]

import gpu_cases  # noqa: E402
import gpu_engine  # noqa: E402
import gpu_models  # noqa: E402
import gpu_tiers  # noqa: E402
import gpu_timing  # noqa: E402

# Seconds that a part may take. Parts that only check or compile share their processes.
LIMITS = {
    "conformance": 110,
    "models": 150,
    "tiers": 60,
    "engine": 45,
    "generate": 75,
    "profile": 45,
    "decode": 40,
    "reading": 20,
    "prefill": 30,
    "flex": 60,
    "store": 20,
    "graph": 20,
    "transfer": 30,
    "sweep": 60,
}
TIMED = ("engine", "generate", "profile", "decode", "reading", "prefill", "flex", "store", "graph", "transfer", "sweep")
ALL = "conformance,models,tiers,engine,generate,decode,reading,prefill,flex,store,graph,transfer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file with all results")
    parser.add_argument("--parts", default=ALL, help="which parts to run (there is profile too)")
    parser.add_argument("--sweep", action="store_true", help="also time a list of tiles, and print the best")
    parser.add_argument("--workers", type=int, default=min(14, os.cpu_count() or 1), help="processes that compile")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=60, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        faulthandler.dump_traceback_later(arguments.limit * 0.95, exit=True)
        run_items(arguments.run.split(","), arguments.lines)
        return
    parts = [*filter(None, arguments.parts.split(",")), *(["sweep"] if arguments.sweep else [])]
    for results in check(parts, arguments.workers):
        arguments.output.write_text(json.dumps(results, indent=1))
    gpu_timing.print_tables(results)
    print(f"Took {results['seconds']} s on {results['card']}; {results['num_failed']} failed. See {arguments.output}.")


def check(parts: list[str], workers: int) -> Iterator[dict[str, Any]]:
    """Results after each part."""
    began = time.monotonic()
    first = [*(gpu_models.names() if "models" in parts else []), *(gpu_cases.names() if "conformance" in parts else [])]
    first += [*(gpu_tiers.names() if "tiers" in parts else []), *gpu_timing.to_compile(parts)]
    limit = max(LIMITS[part] for part in ("conformance", *parts) if part not in TIMED or part == "sweep")
    lines = run_apart([first[index::workers] for index in range(workers)], limit)
    done = {line["item"] for line in lines}
    lines += [{"item": item, "error": "did not run in time"} for item in first if item not in done]
    seconds = {"first": round(time.monotonic() - began, 1)}
    yield results_so_far(lines, seconds, began)
    for part in parts:
        for name in gpu_engine.parts(part) if part in gpu_engine.TIMED else [part] if part in TIMED else []:
            started = time.monotonic()
            lines += run_apart([[f"time:{name}"]], LIMITS[part])
            seconds[name] = round(time.monotonic() - started, 1)
            yield results_so_far(lines, seconds, began)


def results_so_far(lines: list[dict[str, Any]], seconds: dict[str, float], began: float) -> dict[str, Any]:
    return {
        "card": next((line["card"] for line in lines if "card" in line), "no card"),
        "seconds": round(time.monotonic() - began, 1),
        "part_seconds": seconds,
        "num_failed": sum("error" in line for line in lines),
        "lines": lines,
    }


def run_apart(shards: list[list[str]], limit: float) -> list[dict[str, Any]]:
    """Run lists of items, each list in a process; those that take too long are ended."""
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for number, items in enumerate(shards):
            if items:
                output, errors = Path(folder) / f"{number}.jsonl", Path(folder) / f"{number}.txt"
                command = [sys.executable, __file__, "--output", "-", "--run", ",".join(items), "--lines", str(output)]
                command += ["--limit", str(limit)]
                with errors.open("w") as file:
                    running.append((items, output, errors, subprocess.Popen(command, stdout=file, stderr=file)))
        deadline = time.monotonic() + limit
        for items, output, errors, process in running:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
            found = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
            lines += found
            if process.returncode != 0:
                left = [item for item in items if item not in {line["item"] for line in found}]
                lines.append({"item": left[0] if left else items[-1], "error": errors.read_text()[-1500:] or "ended"})
    return lines


def run_items(items: list[str], output: Path) -> None:
    """In a process of its own: one line of results for each item, or several for a part that is timed."""
    import torch

    torch.set_num_threads(1)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no card"
    with output.open("w") as file:

        def tell(line: dict[str, Any]) -> None:
            file.write(json.dumps({**line, "card": card}) + "\n")
            file.flush()

        for item in items:
            try:
                for line in results_of(item):
                    tell({"item": item, **line})
            except Exception:
                error = traceback.format_exc()[-1500:]
                tell({"item": item, "error": error})
                if "CUDA error" in error or "illegal memory" in error:
                    sys.exit(1)  # nothing of this process can be trusted any more


def results_of(item: str) -> Any:
    kind, _, name = item.partition(":")
    runs = {"case": gpu_cases.run, "model": gpu_models.run, "tier": gpu_tiers.run, "compile": gpu_timing.compile_only}
    if kind in runs:
        return [runs[kind](name)]
    if name == "transfer":
        return gpu_tiers.timed()
    return gpu_engine.timed(name) if name.partition("/")[0] in gpu_engine.TIMED else gpu_timing.timed(name)


if __name__ == "__main__":
    main()
