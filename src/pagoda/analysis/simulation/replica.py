"""One cache of a simulation: the engine's own, over pages that hold no bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from pagoda.analysis.simulation.below import BelowCache, Brought, Prompt
from pagoda.analysis.simulation.settings import Settings
from pagoda.analysis.traces.workload import MOST_UNITS, Asked, Workload
from pagoda.cache.cache import Cache, NoBytes
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.sequence import CachedSequence, Hit
from pagoda.config import EngineConfig
from pagoda.planning.caches import make_cache
from pagoda.registry import lookup


class Served(NamedTuple):
    """So many tokens of a prompt were found, of which so many had to be `loaded` from tiers, by name."""

    found_tokens: int
    loaded: Counter[str]


class Replica:
    """A cache for `workload`, as `settings` say; requests are served one at a time.

    `computed_tokens` have not been found in it.
    """

    def __init__(self, workload: Workload, settings: Settings, num_pages: int) -> None:
        self._workload = workload
        # Where units are more than tokens nothing is answered, and a request is computed at once.
        self._step = settings.step_tokens if workload.unit_tokens == 1 else MOST_UNITS
        self._now = 0.0
        self.cache = simulated_cache(settings, num_pages, workload.page_units, lambda: self._now)
        self.below = BelowCache.of(self.cache, settings, workload.unit_tokens, lambda: self._now)
        self.computed_tokens = 0

    def match(self, asked: Asked) -> int:
        """How many tokens of the prompt would be found. Changes nothing."""
        hit = self.cache.match(asked.namespace, asked.prompt, asked.num_findable)
        reach = hit.num_tokens if self.below is None else self.below.reach(_prompt(asked, hit))
        return self._workload.found_tokens(asked, reach)

    def serve(self, asked: Asked) -> Served | None:
        """Run a request from start to end: what was found of its prompt, None if it can never fit."""
        self._pass_time(asked)
        cache = self.cache
        hit = cache.match(asked.namespace, asked.prompt, asked.num_findable)
        fitting = self._fitting(asked, hit)
        if fitting is None:
            return None
        brought = None if self.below is None else self.below.bring(_prompt(asked, hit), fitting)
        if brought is None:
            sequence = cache.attach(_common(asked, fitting), asked.num_prompt_tokens)
            served = Served(self._workload.found_tokens(asked, fitting.num_tokens), Counter())
        else:
            sequence, served = brought.cached, self._served(asked, brought)
        self._compute(sequence, asked)
        cache.release(sequence, asked.sequence)
        if self.below is not None:
            self.below.movers.write()
        self.computed_tokens += asked.num_prompt_tokens - served.found_tokens
        return served

    def _served(self, asked: Asked, brought: Brought) -> Served:
        """In tokens; what of the last unit is no part of the prompt came from where the unit did."""
        found, size = self._workload.found_tokens(asked, brought.num_tokens), self._workload.unit_tokens
        loaded = Counter({name: number * size for name, number in brought.by_tier.items()})
        loaded[brought.last_tier] -= brought.num_tokens * size - found
        return Served(found, loaded)

    def _pass_time(self, asked: Asked) -> None:
        """A trace that is out of order stands still until its time has come again."""
        self._now = max(self._now, asked.arrival_seconds or 0.0)
        self.cache.expire()

    def _fitting(self, asked: Asked, hit: Hit) -> Hit | None:
        """What is found, or its whole pages where there is none left to copy the rest to; None if it never fits."""
        if self._fits(asked, hit):
            return hit
        whole = self.cache.whole_pages(hit)
        return whole if self._fits(asked, whole) else None

    def _fits(self, asked: Asked, hit: Hit) -> bool:
        used = _common(asked, hit)
        return self.cache.can_attach(used, len(asked.sequence) - used.num_tokens, self._step)

    def _compute(self, sequence: CachedSequence, asked: Asked) -> None:
        """The prompt in steps, then each token of the answer, as the engine does it."""
        cache, units, num_prompt = self.cache, asked.sequence, len(asked.prompt)
        if self._workload.unit_tokens > 1:
            num_prompt = len(units)
        done = sequence.num_tokens
        while done < len(units):
            count = min(self._step, num_prompt - done) if done < num_prompt else 1
            reserved = cache.reserve(sequence, count)
            assert reserved, "the cache promised these pages"
            done += count
            cache.commit(sequence, units, done)


def _common(asked: Asked, hit: Hit) -> Hit:
    """What of a hit the sequence goes on from: where an answer changed the last page, less than was found."""
    return hit if hit.num_tokens <= asked.num_common else hit._replace(num_tokens=asked.num_common)


def _prompt(asked: Asked, hit: Hit) -> Prompt:
    """Where an answer changed the last page no tier brings what comes before it."""
    return Prompt(hit, min(asked.num_findable, asked.num_common), asked.sequence)


def simulated_cache(settings: Settings, num_pages: int, page_units: int, clock: Callable[[], float]) -> Cache:
    """A cache of `num_pages` of so many units each, or of the groups of a model, whose pages hold no bytes."""
    memory = settings.memory
    if memory is not None:
        config = EngineConfig(
            eviction_policy=settings.policy,
            prefix_cache_ttl_seconds=settings.ttl_seconds,
            tenants=settings.tenants,
            block_size=page_units,
        )
        stores = [NoBytes() for _ in range(len(memory.pools) + (memory.states is not None))]
        return make_cache(memory, stores, config, clock)
    policy = lookup("eviction", settings.policy)()
    group = PageGroup(num_pages, page_units, policy, KeepAll(), tenants=settings.tenants)
    ttl = policy.lifetime_seconds if settings.ttl_seconds is None else settings.ttl_seconds
    return Cache([group], [NoBytes()], clock=clock, lifetime_seconds=ttl)
