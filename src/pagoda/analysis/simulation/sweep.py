"""Runs a trace under several policies and capacities, in as many processes as there are processors.

Every process has the trace once; a run is named to it, and its counts come back. Whoever asks is told how far all of
them are.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from queue import Empty
from typing import Any

from pagoda.analysis.simulation.capacity import Capacity
from pagoda.analysis.simulation.certain import nothing_found
from pagoda.analysis.simulation.counts import Counts
from pagoda.analysis.simulation.optimum import optimum
from pagoda.analysis.simulation.replay import replay
from pagoda.analysis.simulation.settings import OPTIMUM, Settings
from pagoda.analysis.simulation.timed import Timing, simulate
from pagoda.analysis.traces.workload import Workload, shares_nothing
from pagoda.errors import ConfigError, PagodaError

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Run:
    """One policy at one capacity."""

    policy: str
    capacity: Capacity


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    run: Run
    counts: Counts


@dataclass(frozen=True)
class Sweep:
    """`workload` under what all runs have in common: `settings`, and `timing` if there is a time model."""

    workload: Workload
    settings: Settings
    timing: Timing | None = None

    @property
    def is_certain(self) -> bool:
        """Whether nothing can be found, and nobody asks for times or shares."""
        return self.timing is None and not self.settings.tenants and shares_nothing(self.workload)

    def run(self, run: Run, tell: Callable[[int], None]) -> Counts:
        """`tell` is called now and then with how many more requests are done."""
        capacity = run.capacity
        settings = replace(self.settings, policy=run.policy, memory=capacity.memory, page_nbytes=capacity.page_nbytes)
        if run.policy == OPTIMUM:
            return optimum(self.workload, settings, capacity.num_simulated, tell)
        if self.timing is not None:
            return simulate(self.workload, settings, capacity.num_simulated, self.timing, tell)
        return replay(self.workload, settings, capacity.num_simulated, tell)


def sweep(
    sweep: Sweep, runs: Sequence[Run], tell: Callable[[int], None], num_processes: int | None = None
) -> list[Outcome]:
    """The outcomes of `runs`, in their order. `tell` is called now and then with how many more requests are done."""
    tiers = sweep.settings.tiers.names
    if sweep.is_certain and all(run.capacity.memory is None for run in runs):
        return [Outcome(run, nothing_found(sweep.workload, run.capacity.num_simulated, tiers)) for run in runs]
    number = min(num_processes or os.cpu_count() or 1, len(runs))
    if number == 1:
        return [Outcome(run, sweep.run(run, tell)) for run in runs]
    context = multiprocessing.get_context("spawn")
    channel = _Channel(context.Queue(), context.Queue(), context.Value("q", 0))
    for index in [*range(len(runs)), *[None] * number]:
        channel.wanted.put(index)
    processes = [context.Process(target=_work, args=(sweep, runs, channel), daemon=True) for _ in range(number)]
    try:
        with _without_interrupts():
            for process in processes:
                process.start()
        found = _collect(len(runs), channel, processes, tell)
    finally:
        for process in processes:
            process.terminate()
    return [Outcome(run, found[index]) for index, run in enumerate(runs)]


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are started inside never get Ctrl-C: whoever started them does, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class _Channel:
    """Between processes: which runs are wanted, what came of them, and how many requests are done in all."""

    wanted: Any
    found: Any
    done: Any

    def tell(self, num_more: int) -> None:
        with self.done.get_lock():
            self.done.value += num_more


def _work(sweep: Sweep, runs: Sequence[Run], channel: _Channel) -> None:
    """One process: runs what nobody has begun."""
    while (index := channel.wanted.get()) is not None:
        try:
            channel.found.put((index, sweep.run(runs[index], channel.tell)))
        except PagodaError as error:
            channel.found.put((index, error))


def _collect(
    number: int, channel: _Channel, processes: Sequence[BaseProcess], tell: Callable[[int], None]
) -> dict[int, Counts]:
    """What came of so many runs. Raises what one of them raised, and ConfigError if a process ends without a word."""
    found: dict[int, Counts] = {}
    told = 0
    while len(found) < number:
        with suppress(Empty):
            index, result = channel.found.get(timeout=POLL_SECONDS)
            if isinstance(result, PagodaError):
                raise result
            found[index] = result
        told, before = channel.done.value, told
        tell(told - before)
        if any(process.exitcode for process in processes):
            raise ConfigError("A process of the simulation was ended, as if memory ran out; take fewer --processes.")
    return found
