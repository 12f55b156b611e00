"""What is found in a pool and a disk below it: the engine's bookkeeping, the simulator and a counter apart must agree.

    python benchmarks/tier_hits.py --trace ../shared/data/traces/mooncake_conversation_trace.jsonl.gz

The counter is that of the tests, plain dictionaries that share no code with the package. Every request must find the
same tokens in the pool and on disk in all three, and as much must be written. Prints a table; fails where they differ.
"""

from __future__ import annotations

import gzip
import json
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pagoda.analysis.simulation.below import BelowCache
from pagoda.analysis.simulation.replay import replay
from pagoda.analysis.simulation.replica import simulated_cache
from pagoda.analysis.simulation.settings import Settings
from pagoda.analysis.simulation.tiers import TierOptions
from pagoda.analysis.traces.reading import ReadOptions, read_trace
from pagoda.analysis.traces.workload import Workload, prepare
from pagoda.cache.groups.table import ResumePoints
from pagoda.cache.residency.admission import WritePolicy

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from analysis.tier_counting import tiered

BLOCK = 512
MILLION = 1_000_000
POOLS = (0.5, 1.5, 5.0)
DISKS = (None, 5.1, 15.4, 50.0)


class Case(NamedTuple):
    """Sizes in millions of tokens."""

    pool: float
    disk: float | None
    write: str

    @property
    def num_pages(self) -> int:
        return int(self.pool * MILLION) // BLOCK

    @property
    def disk_tokens(self) -> int | None:
        return None if self.disk is None else int(self.disk * MILLION)

    @property
    def settings(self) -> Settings:
        return Settings(tiers=TierOptions(disk_size=self.disk_tokens, write=WritePolicy(self.write)))


@dataclass
class Found:
    """Tokens of each request in the pool and on disk, and what was written there, once and again."""

    requests: list[tuple[int, int]]
    written_tokens: int = 0
    rewritten_tokens: int = 0

    @property
    def totals(self) -> tuple[int, int]:
        return sum(pool for pool, _ in self.requests), sum(disk for _, disk in self.requests)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--writes", nargs="+", default=["seal", "evict", "second-hit"])
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    print("| pool | disk | write | found | pool | disk | M tokens written | again | equal |\n" + "|---" * 9 + "|")
    with ProcessPoolExecutor(arguments.processes) as executor:
        cases = list(wanted(arguments.writes))
        results = executor.map(run, cases, [arguments.trace] * len(cases))
        equal = [show(case, *result) for case, result in zip(cases, results, strict=True)]
    sys.exit(not all(equal))


def wanted(writes: list[str]) -> Iterator[Case]:
    for pool in POOLS:
        for disk in DISKS:
            for write in writes if disk else writes[:1]:
                yield Case(pool, disk, write)


def run(case: Case, trace: Path) -> tuple[int, list[Found]]:
    """How many tokens were asked for, and what each of the three has found."""
    workload = workload_of(trace)
    ways = [driven(case, workload), simulated(case, workload), counted(case, trace)]
    return sum(asked.num_prompt_tokens for asked in workload.requests), ways


def show(case: Case, num_asked: int, ways: list[Found]) -> bool:
    """A row; whether all three agree."""
    is_equal = ways[0] == ways[1] == ways[2]
    pool, disk = ways[0].totals
    shares = [f"{number / num_asked:.2%}" for number in (pool + disk, pool, disk)]
    written = [f"{number / MILLION:.1f}" for number in (ways[0].written_tokens, ways[0].rewritten_tokens)]
    size = "-" if case.disk is None else f"{case.disk:g} M"
    write = "-" if case.disk is None else case.write
    cells = [f"{case.pool:g} M", size, write, *shares, *written, "yes" if is_equal else "NO"]
    print(f"| {' | '.join(cells)} |", flush=True)
    return is_equal


@cache
def workload_of(trace: Path) -> Workload:
    return prepare(read_trace(trace, ReadOptions(tokens=no_tokens)), BLOCK)


def no_tokens() -> None:
    raise AssertionError("the trace has no text")


def driven(case: Case, workload: Workload) -> Found:
    """The cache and the residency of the engine, called request by request."""
    memory = simulated_cache(case.settings, case.num_pages, 1, lambda: 0.0)
    below = BelowCache.of(memory, case.settings, BLOCK, lambda: 0.0)
    found = []
    for asked in workload.requests:
        hit = memory.match(asked.namespace, asked.prompt, len(asked.prompt))
        if not memory.can_attach(hit, len(asked.prompt) - hit.num_tokens):
            found.append((0, 0))
            continue
        plan = None if below is None else below.residency.seek(hit, len(asked.prompt)).result()
        if below is None or plan is None:
            sequence, from_disk = memory.attach(hit, len(asked.prompt)), 0
        else:
            loading = below.residency.begin(hit, plan, ResumePoints(hit.branch_tokens, len(asked.prompt)))
            assert below.residency.settle(loading, asked.prompt), "nothing leaves a disk before it was read"
            sequence, from_disk = loading.cached, loading.loaded_tokens["disk"]
        in_pool = min(hit.num_tokens * BLOCK, asked.num_prompt_tokens)
        in_all = min((hit.num_tokens + from_disk) * BLOCK, asked.num_prompt_tokens)
        found.append((in_pool, in_all - in_pool))
        assert memory.reserve(sequence, len(asked.prompt) - sequence.num_tokens)
        memory.commit(sequence, asked.prompt, len(asked.prompt))
        memory.release(sequence, asked.prompt)
        if below is not None:
            below.movers.write()
    if below is None or below.tiers.disk is None:
        return Found(found)
    return Found(found, below.tiers.disk.stats().written_nbytes, below.tiers.disk.rewritten_nbytes)


def simulated(case: Case, workload: Workload) -> Found:
    """`pagoda simulate`."""
    counts = replay(workload, case.settings, case.num_pages, lambda _: None)
    disk = counts.tiers.get("disk")
    if disk is None:
        return Found([(max(hit, 0), 0) for hit in counts.hit_tokens])
    pairs = zip(counts.hit_tokens, disk.hit_tokens, strict=True)
    return Found([(max(hit, 0) - own, own) for hit, own in pairs], disk.written_tokens, disk.rewritten_nbytes)


def counted(case: Case, trace: Path) -> Found:
    """Plain dictionaries."""
    with gzip.open(trace, "rt") as file:
        rows = [json.loads(line) for line in file]
    found, tiers = tiered(rows, case.num_pages, disk=case.disk_tokens, write=case.write, block=BLOCK)
    each = [Counter(tokens or {}) for tokens in found]
    disk = tiers.get("disk")
    written = (0, 0) if disk is None else (disk.written * BLOCK, disk.rewritten * BLOCK)
    return Found([(tokens["pool"], tokens["disk"]) for tokens in each], *written)


if __name__ == "__main__":
    main()
