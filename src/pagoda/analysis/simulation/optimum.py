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

from collections import deque
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
NO_END = float("inf")
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
    times = list(accumulate((asked.arrival_seconds or 0.0 for asked in requests), max))
    ends = _ends(times, settings.ttl_seconds)
    next_uses = _next_uses(paths, times, ends)
    counts = Counts.of(len(requests))
    kept = _Kept(num_pages * workload.page_units)
    for number, (asked, path, uses) in enumerate(zip(requests, paths, next_uses, strict=True)):
        kept.expire(times[number])
        if fits[number]:
            num_units = kept.num_found(prompts[number][: asked.num_findable])
            counts.add(number, asked.num_prompt_tokens, workload.found_tokens(asked, num_units))
            kept.use(path, uses, ends[number])
        else:
            counts.refuse(asked.num_prompt_tokens)
        counts.peak_pages = max(counts.peak_pages, -(-len(kept) // workload.page_units))
        if number % OFTEN == OFTEN - 1:
            tell(OFTEN)
    tell(len(requests) % OFTEN)
    dropped = {Reason.ROOM: kept.num_dropped, Reason.EXPIRED: kept.num_expired}
    counts.evicted_pages = {reason.value: number // workload.page_units for reason, number in dropped.items()}
    counts.by_replica = [len(requests)]
    counts.peak_nbytes = counts.peak_pages * sum(settings.page_nbytes)
    return counts


class _Kept:
    """Up to `capacity` units, when each is used next, and until when it may lie."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._uses: dict[int, int] = {}
        self._order: list[tuple[int, int, int]] = []  # the last use first, and then the deepest
        self._ends: dict[int, float] = {}
        self._used: deque[tuple[float, Sequence[int]]] = deque()  # paths, the one first whose time ends first
        self.num_dropped = self.num_expired = 0

    def __len__(self) -> int:
        return len(self._uses)

    def num_found(self, path: Sequence[int]) -> int:
        """What is kept of a path is its beginning."""
        uses = self._uses
        return next((depth for depth, unit in enumerate(path) if unit not in uses), len(path))

    def expire(self, now: float) -> None:
        """What nobody has used for too long goes, though there is room."""
        while self._used and self._used[0][0] <= now:
            _, path = self._used.popleft()
            for unit in path:
                if self._ends.get(unit, NO_END) <= now:
                    self._drop(unit)
                    self.num_expired += 1

    def use(self, path: Sequence[int], next_uses: Sequence[int], end: float) -> None:
        """All of a path is used now and may lie until `end`, which is never before that of the path before."""
        uses, order = self._uses, self._order
        if end < NO_END:
            self._used.append((end, path))
            self._ends.update(dict.fromkeys(path, end))
        for depth, (unit, next_use) in enumerate(zip(path, next_uses, strict=True)):
            uses[unit] = next_use
            heappush(order, (-next_use, -depth, unit))
        while len(uses) > self._capacity:
            use, _, unit = heappop(order)
            if uses.get(unit) == -use:
                self._drop(unit)
                self.num_dropped += 1

    def _drop(self, unit: int) -> None:
        del self._uses[unit]
        self._ends.pop(unit, None)


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


def _ends(times: Sequence[float], ttl_seconds: float | None) -> list[float]:
    """Until when what is used at each of `times` may lie: a little longer than in a cache, as this is a bound."""
    lifetime = NO_END if ttl_seconds is None else ttl_seconds * (1 + Lifetime.RESOLUTION)
    return [time + lifetime for time in times]


def _next_uses(paths: Sequence[list[int]], times: Sequence[float], ends: Sequence[float]) -> list[list[int]]:
    """For each unit of each request the number of the next request that uses it: NEVER if that comes too late."""
    last: dict[int, int] = {}
    found: list[list[int]] = []
    for number in reversed(range(len(paths))):
        path, end = paths[number], ends[number]
        uses = [last.get(unit, NEVER) for unit in path]
        found.append([use if use != NEVER and times[use] < end else NEVER for use in uses])
        last.update(dict.fromkeys(path, number))
    found.reverse()
    return found
