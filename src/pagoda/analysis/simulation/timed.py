"""Runs a trace in time: requests arrive when they did, wait, are batched, and end when the time model says so.

Each replica has the engine's scheduler and cache, and a clock of its own; what comes next anywhere happens next. The
trace is in tokens here: those of a block, or of a page, are all alike, and what nobody knows of an answer is its own.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pagoda.analysis.simulation.counts import Counts, Times
from pagoda.analysis.simulation.gauge import Gauge
from pagoda.analysis.simulation.rates import Rates
from pagoda.analysis.simulation.replica import simulated_cache
from pagoda.analysis.simulation.routing import route_of
from pagoda.analysis.simulation.server import Done, Job, Server
from pagoda.analysis.simulation.settings import Settings
from pagoda.analysis.traces.workload import MOST_UNITS, Asked, Workload
from pagoda.cache.prefix.keys import TOKEN_TYPE

OFTEN = 64  # requests between two calls of `tell`
NOTHING = array(TOKEN_TYPE)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How fast steps are, and when requests arrive: as the trace says, `speed` times as fast, or by chance, so many
    `requests_per_second` (a Poisson process). Where neither says anything all are there from the start.
    """

    rates: Rates
    speed: float = 1.0
    requests_per_second: float | None = None


def simulate(
    workload: Workload, settings: Settings, num_pages: int, timing: Timing, tell: Callable[[int], None]
) -> Counts:
    """`tell` is called now and then with how many more requests have ended."""
    return _Simulation(workload, settings, num_pages, timing, tell).run()


class _Simulation:
    def __init__(
        self, workload: Workload, settings: Settings, num_pages: int, timing: Timing, tell: Callable[[int], None]
    ) -> None:
        self._workload = workload
        self._timing = timing
        self._tell = tell
        self._counts = Counts.of(len(workload.requests), settings.tiers.names)
        self._ttft, self._e2e = array("d"), array("d")
        self._num_output_tokens = self._num_done = 0
        self._most_tokens = num_pages * workload.page_tokens
        self._servers = [self._server(settings, num_pages) for _ in range(settings.num_replicas)]
        self._gauge = Gauge([server.cache for server in self._servers], settings.page_nbytes)
        self._served = [0] * settings.num_replicas
        self._route = route_of(settings.routing)

    def run(self) -> Counts:
        for job in self._jobs():
            self._advance(job.arrival_seconds)
            if len(job.prompt) + len(job.answer) - 1 > self._most_tokens:
                self._done(Done(job, None))
            else:
                index = self._choose(job)
                self._served[index] += 1
                self._servers[index].add(job)
        self._advance(float("inf"))
        self._tell(self._num_done % OFTEN)
        return self._result()

    def _server(self, settings: Settings, num_pages: int) -> Server:
        servers: list[Server] = []
        cache = simulated_cache(settings, num_pages, self._workload.page_tokens, lambda: servers[0].now)
        servers.append(Server(cache, settings, self._timing.rates, self._done))
        return servers[0]

    def _jobs(self) -> Iterator[Job]:
        """In order of arrival."""
        arrivals = _arrivals(self._workload, self._timing)
        tokens = _Tokens(self._workload)
        for number in sorted(range(len(arrivals)), key=arrivals.__getitem__):
            asked = self._workload.requests[number]
            yield Job(number, asked.namespace, tokens.prompt(asked), tokens.answer(asked), arrivals[number])

    def _advance(self, until: float) -> None:
        """Let everybody compute whose next step begins before `until`."""
        while True:
            busy = [server for server in self._servers if server.has_work]
            server = min(busy, key=lambda each: each.now, default=None)
            if server is None or server.now >= until:
                return
            server.step(until)

    def _choose(self, job: Job) -> int:
        servers = self._servers
        if len(servers) == 1:
            return 0

        def found(index: int) -> int:
            return servers[index].reach(job)

        return self._route(job.number, found, [server.load_tokens for server in servers])

    def _done(self, done: Done) -> None:
        job, counts = done.job, self._counts
        if done.num_cached_tokens is None:
            counts.refuse(len(job.prompt))
        else:
            counts.add(job.number, len(job.prompt), done.num_cached_tokens, done.loaded)
            self._ttft.append(done.first_token_seconds - job.arrival_seconds)
            self._e2e.append(done.last_token_seconds - job.arrival_seconds)
            self._num_output_tokens += len(job.answer)
        self._num_done += 1
        if self._num_done % OFTEN == 0:
            self._tell(OFTEN)
            self._gauge.look()

    def _result(self) -> Counts:
        counts, servers = self._counts, self._servers
        self._gauge.tell(counts)
        counts.by_replica = self._served
        for server in servers:
            if server.below is not None:
                server.below.tell(counts)
        counts.times = Times(
            ttft_seconds=self._ttft,
            e2e_seconds=self._e2e,
            num_output_tokens=self._num_output_tokens,
            num_preemptions=sum(server.num_preemptions for server in servers),
            num_steps=sum(server.num_steps for server in servers),
            busy_seconds=sum(server.busy_seconds for server in servers),
            duration_seconds=max(server.now for server in servers),
        )
        return counts


class _Tokens:
    """The requests of a workload in tokens: those of a unit are all alike, and of an answer those that the trace lacks
    stand in no prompt.
    """

    def __init__(self, workload: Workload) -> None:
        self._unit = workload.unit_tokens
        self._next = 1 + max((max(asked.sequence, default=0) for asked in workload.requests), default=0)

    def prompt(self, asked: Asked) -> array[int]:
        return _repeated(asked.prompt, self._unit)[: asked.num_prompt_tokens]

    def answer(self, asked: Asked) -> array[int]:
        start, stop = asked.num_prompt_tokens, asked.num_prompt_tokens + asked.num_output_tokens
        known = NOTHING if asked.sequence is asked.prompt else _repeated(asked.sequence, self._unit)[start:stop]
        token, self._next = self._next, min(self._next + 1, MOST_UNITS)
        return known + array(TOKEN_TYPE, [token]) * (asked.num_output_tokens - len(known))


def _repeated(units: array[int], times: int) -> array[int]:
    if times == 1:
        return units
    repeated = array(TOKEN_TYPE, bytes(len(units) * times * units.itemsize))
    for part in range(times):
        repeated[part::times] = units
    return repeated


def _arrivals(workload: Workload, timing: Timing) -> list[float]:
    requests = workload.requests
    if timing.requests_per_second is not None:
        draw, now, arrivals = random.Random(0), 0.0, []
        for _ in requests:
            arrivals.append(now)
            now += draw.expovariate(timing.requests_per_second)
        return arrivals
    known = [asked.arrival_seconds for asked in requests if asked.arrival_seconds is not None]
    first = time = min(known, default=0.0)
    arrivals = []
    for asked in requests:
        time = time if asked.arrival_seconds is None else asked.arrival_seconds  # who does not say comes with the last
        arrivals.append((time - first) / timing.speed)
    return arrivals
