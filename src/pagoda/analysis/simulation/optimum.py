"""The offline optimum: what no order of eviction can beat, since it knows which request comes next.

Belady's rule (IBM Systems Journal 5, 1966) with bypass: after each request keep, of all there is, what is used again
soonest. With bypass every page between two of its uses is either kept, which is one hit, or not; at no time may more
be kept than there is room for. That is the largest set of intervals of which at most `capacity` overlap, and to drop
the one that ends last whenever there are too many is optimal for it.

A prefix cache has one rule more: a page is found only if all before it are. Whoever uses a page uses all before it,
so what is before is never used later than what continues it. Where equals are dropped from the deepest on, what is
kept is whole prefixes after every request; so the optimum without the rule obeys it, and is the optimum with it.

Counted in units, of which a page has some: in pages nothing more could be kept. What takes part in a request may stay
out of the cache, as no engine can; so this is a bound, not a policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import accumulate

from pagoda.analysis.simulation.counts import Counts
from pagoda.analysis.simulation.settings import Settings
from pagoda.analysis.traces.workload import Asked, Workload
from pagoda.cache.lifetime import Lifetime
from pagoda.cache.prefix.held import Reason
from pagoda.cache.prefix.namespace import Namespace

NEVER = 1 << 60
OFTEN = 64


def optimum(workload: Workload, settings: Settings, num_pages: int, tell: Callable[[int], None]) -> Counts:
    """The most hits that a cache of `num_pages` can have. `tell` is called with how many more requests are done."""
    requests = workload.requests
    fits = [workload.num_pages(asked) <= num_pages for asked in requests]
    nodes = _Nodes()
    prompts = [nodes.path(asked.namespace, asked.prompt) for asked in requests]
    paths = [
        _used(nodes, asked, prompt) if fit else [] for asked, prompt, fit in zip(requests, prompts, fits, strict=True)
    ]
    next_uses = _next_uses(requests, paths, settings.ttl_seconds)
    counts = Counts.of(len(requests))
    kept = _Kept(num_pages * workload.page_units)
    for number, (asked, path, uses) in enumerate(zip(requests, paths, next_uses, strict=True)):
        if fits[number]:
            num_units = kept.num_found(prompts[number][: asked.num_findable])
            counts.add(number, asked.num_prompt_tokens, workload.found_tokens(asked, num_units))
            kept.use(path, uses)
        else:
            counts.refuse(asked.num_prompt_tokens)
        counts.peak_pages = max(counts.peak_pages, -(-len(kept) // workload.page_units))
        if number % OFTEN == OFTEN - 1:
            tell(OFTEN)
    tell(len(requests) % OFTEN)
    counts.evicted_pages = {Reason.ROOM.value: kept.num_dropped // workload.page_units}
    counts.by_replica = [len(requests)]
    counts.peak_nbytes = counts.peak_pages * sum(settings.page_nbytes)
    return counts


class _Kept:
    """Up to `capacity` units, and when each is used next."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._uses: dict[int, int] = {}
        self._order: list[tuple[int, int, int]] = []  # the last use first, and then the deepest
        self.num_dropped = 0

    def __len__(self) -> int:
        return len(self._uses)

    def num_found(self, path: Sequence[int]) -> int:
        """What is kept of a path is its beginning."""
        uses = self._uses
        return next((depth for depth, unit in enumerate(path) if unit not in uses), len(path))

    def use(self, path: Sequence[int], next_uses: Sequence[int]) -> None:
        uses, order = self._uses, self._order
        for depth, (unit, next_use) in enumerate(zip(path, next_uses, strict=True)):
            uses[unit] = next_use
            heappush(order, (-next_use, -depth, unit))
        while len(uses) > self._capacity:
            use, _, unit = heappop(order)
            if uses.get(unit) == -use:
                del uses[unit]
                self.num_dropped += 1


class _Nodes:
    """Numbers of units, which are equal where all before them are equal, too."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, int], int] = {}

    def path(self, namespace: Namespace, units: Sequence[int]) -> list[int]:
        known = self._known
        node: object = namespace
        path = []
        for unit in units:
            node = known.setdefault((node, unit), len(known))
            path.append(node)
        return path


def _used(nodes: _Nodes, asked: Asked, prompt: list[int]) -> list[int]:
    """All that a request uses: what it leaves behind, and what it looks for of others' last pages."""
    if asked.sequence is asked.prompt:
        return prompt
    return [*nodes.path(asked.namespace, asked.sequence), *prompt[asked.num_common :]]


def _next_uses(requests: Sequence[Asked], paths: Sequence[list[int]], ttl_seconds: float | None) -> list[list[int]]:
    """For each unit of each request the number of the next request that uses it: NEVER if that comes too late."""
    times = list(accumulate((asked.arrival_seconds or 0.0 for asked in requests), max))
    last: dict[int, int] = {}
    found: list[list[int]] = []
    for number in reversed(range(len(requests))):
        path = paths[number]
        uses = [last.get(unit, NEVER) for unit in path]
        if ttl_seconds is not None:
            ends = times[number] + ttl_seconds * (1 + Lifetime.RESOLUTION)
            uses = [use if use != NEVER and times[use] < ends else NEVER for use in uses]
        found.append(uses)
        last.update(dict.fromkeys(path, number))
    found.reverse()
    return found
