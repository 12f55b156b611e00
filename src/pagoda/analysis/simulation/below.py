"""What lies below one simulated cache: the engine's residency, over tiers and movers of a simulation."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pagoda.analysis.simulation.counts import Counts
from pagoda.analysis.simulation.movers import SimulatedMovers
from pagoda.analysis.simulation.settings import Settings
from pagoda.analysis.simulation.tiers import RecordSizes, SimulatedTiers
from pagoda.cache.cache import Cache, NoBytes
from pagoda.cache.groups.table import ResumePoints
from pagoda.cache.prefix.keys import TOKEN_NBYTES
from pagoda.cache.prefix.names import Identity, PageNames
from pagoda.cache.residency.residency import Residency
from pagoda.cache.residency.seek import Plan
from pagoda.cache.sequence import CachedSequence, Hit
from pagoda.engine.tiers import labels_of
from pagoda.errors import OutOfPagesError


class Prompt(NamedTuple):
    """A prompt was `hit`; up to `limit` of its tokens may be brought, to a sequence that will have `tokens`."""

    hit: Hit
    limit: int
    tokens: array[int]


class Brought(NamedTuple):
    """`cached` has its first `num_tokens`, of which so many came from each tier, the last from `last_tier`."""

    cached: CachedSequence
    num_tokens: int
    by_tier: Counter[str]
    last_tier: str


@dataclass(frozen=True)
class BelowCache:
    """Tiers below a cache, and what moves pages between."""

    residency: Residency
    movers: SimulatedMovers
    tiers: SimulatedTiers
    main: int

    @classmethod
    def of(cls, cache: Cache, settings: Settings, unit_tokens: int, clock: Callable[[], float]) -> BelowCache | None:
        """What `settings` say, for tokens that stand for `unit_tokens` each; None if there are no tiers."""
        if not settings.tiers.names:
            return None
        has_bytes = bool(settings.page_nbytes)
        pages = settings.page_nbytes or tuple(group.page_tokens * unit_tokens for group in cache.groups)
        sizes = RecordSizes(pages, unit_tokens, has_bytes)
        movers = SimulatedMovers(sizes, settings.tiers.rates, clock, cache.main_index)
        tiers = SimulatedTiers.of(settings.tiers, has_bytes)
        stores, labels = [NoBytes(nbytes) for nbytes in pages], labels_of(cache, PageNames(Identity()))
        residency = Residency(cache, stores, labels, tiers.all, settings.tiers.write, movers)
        return cls(residency, movers, tiers, cache.main_index)

    def reach(self, prompt: Prompt) -> int:
        """How many tokens can be had with what is in tiers. Changes nothing."""
        plan = self._plan(prompt)
        return prompt.hit.num_tokens if plan is None else plan.num_tokens

    def bring(self, prompt: Prompt, fitting: Hit) -> Brought | None:
        """Bring what a prompt can use beyond what it hit, to begin with `fitting` of that; None if there is nothing."""
        plan = self._plan(prompt)
        if plan is None:
            return None
        points = ResumePoints(fitting.branch_tokens, len(prompt.hit.key) // TOKEN_NBYTES)
        try:
            loading = self.residency.begin(fitting, plan, points)
        except OutOfPagesError:
            return None
        if not self.residency.settle(loading, prompt.tokens):
            return None
        sources = next(each for each in (plan.sources[self.main], *plan.sources) if each)
        return Brought(loading.cached, plan.num_tokens, loading.loaded_tokens, sources[-1].tier.name)

    def tell(self, counts: Counts) -> None:
        """Add what was moved in the whole run."""
        for tier in self.tiers.all:
            told, stats = counts.tiers[tier.name], tier.stats()
            told.written_tokens += self.movers.written_tokens[tier.name]
            told.written_nbytes += stats.written_nbytes
            told.num_dropped += stats.num_dropped
        if self.tiers.disk is not None:
            counts.tiers[self.tiers.disk.name].rewritten_nbytes += self.tiers.disk.rewritten_nbytes

    def _plan(self, prompt: Prompt) -> Plan | None:
        plan = self.residency.seek(prompt.hit, prompt.limit).result()
        return None if plan is None or plan.num_tokens <= prompt.hit.num_tokens else plan
