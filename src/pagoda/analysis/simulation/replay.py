"""Replays a trace without a time model: requests one at a time, in the order of the file.

What is found of a prompt is counted before anything of it is kept; a page is found only if all before it are. Answers
are kept as far as the trace knows their tokens.
"""

from __future__ import annotations

from collections.abc import Callable

from pagoda.analysis.simulation.counts import Counts
from pagoda.analysis.simulation.gauge import Gauge
from pagoda.analysis.simulation.replica import Replica
from pagoda.analysis.simulation.routing import route_of
from pagoda.analysis.simulation.settings import Settings
from pagoda.analysis.traces.workload import Workload

OFTEN = 64  # requests between two calls of `tell`


def replay(workload: Workload, settings: Settings, num_pages: int, tell: Callable[[int], None]) -> Counts:
    """`tell` is called now and then with how many more requests are done."""
    replicas = [Replica(workload, settings, num_pages) for _ in range(settings.num_replicas)]
    route, counts = route_of(settings.routing), Counts.of(len(workload.requests), settings.tiers.names)
    gauge = Gauge([each.cache for each in replicas], settings.page_nbytes)
    served = [0] * len(replicas)
    for number, asked in enumerate(workload.requests):
        index = 0
        if len(replicas) > 1:
            loads = [each.computed_tokens for each in replicas]
            index = route(number, lambda at: replicas[at].match(asked), loads)  # noqa: B023 - called before the next
        answer = replicas[index].serve(asked)
        served[index] += 1
        if answer is None:
            counts.refuse(asked.num_prompt_tokens)
        else:
            counts.add(number, asked.num_prompt_tokens, *answer)
        if number % OFTEN == OFTEN - 1:
            tell(OFTEN)
            gauge.look()
    tell(len(workload.requests) % OFTEN)
    gauge.tell(counts)
    counts.by_replica = served
    for replica in replicas:
        if replica.below is not None:
            replica.below.tell(counts)
    return counts
