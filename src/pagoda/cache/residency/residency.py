"""What moves between the pool and the tiers below it, as the engine sees it: seek, begin a load, settle it.

Methods belong to the thread that steps but where they say otherwise; threads of its own do what may take long. Pages go
down as they are sealed or evicted (`demotion.py`); they come up where a waiting prompt can use them (`seek.py`,
`load.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from pagoda.cache.cache import Cache, PageStore
from pagoda.cache.groups.fill import Fill
from pagoda.cache.groups.table import ResumePoints
from pagoda.cache.prefix.held import Reason
from pagoda.cache.prefix.keys import TOKEN_NBYTES
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.prefix.snapshots import Snapshot
from pagoda.cache.report import LoadDecision
from pagoda.cache.residency.admission import Admission, WritePolicy
from pagoda.cache.residency.break_even import BreakEven
from pagoda.cache.residency.copies import num_pages
from pagoda.cache.residency.demotion import Below, Demotion
from pagoda.cache.residency.labels import Labels
from pagoda.cache.residency.load import Part, Place
from pagoda.cache.residency.movers import Movers, Reading
from pagoda.cache.residency.seek import Plan, Source, Wanted, seek
from pagoda.cache.residency.tails import Tails
from pagoda.cache.sequence import CachedSequence, Hit, needed_records
from pagoda.cache.tiers.base import Tier, TierStats

CLOSE_SECONDS = 10.0
STATS_SECONDS = 1.0  # tiers are not asked more often what they hold


@dataclass(frozen=True)
class TierReport:
    """A tier, what waits to be written to it, what was not written since too much waited, and what came from it."""

    name: str
    stats: TierStats
    staged_nbytes: int
    num_skipped: int
    num_loaded: int
    loaded_nbytes: int


@dataclass(eq=False)
class Loading:
    """Pages of `cached` that are on their way for the first `num_tokens` of a prompt."""

    cached: CachedSequence
    fills: list[Sequence[Fill]]
    plan: Plan
    load: Reading
    loaded_tokens: Counter[str] = field(default_factory=Counter)  # by tier


class Residency:
    """Between `cache`, whose pages are in `stores`, and `tiers`, the fastest first, of which some outlive the process.

    Nothing is read from or written to the tiers but by `movers`, which are threads in an engine.
    """

    def __init__(
        self,
        cache: Cache,
        stores: Sequence[PageStore],
        labels: Labels,
        tiers: Sequence[Tier],
        policy: WritePolicy,
        movers: Movers,
    ) -> None:
        self._cache = cache
        self._stores = tuple(stores)
        self._labels = labels
        self.tiers = tuple(tiers)
        self.break_even = BreakEven()
        self._below = [Below(tier, movers.writing_to(tier), tier.persists) for tier in tiers]
        self._movers = movers
        self._latest_stats: Sequence[TierStats] = [tier.stats() for tier in tiers]
        self._stats_asked: Future[Sequence[TierStats] | None] = Future()
        self._stats_asked.set_result(None)
        self._stats_asked_at = movers.now()
        self._num_loaded = Counter[str]()
        self._loaded_nbytes = Counter[str]()
        self._tails = Tails(cache, labels)
        limits = [told.limit_nbytes for tier, told in zip(tiers, self._latest_stats, strict=True) if tier.persists]
        admission = Admission(policy, None if None in limits else max(filter(None, limits), default=0))
        self._demotions = [
            Demotion(index, store, labels, self._below, admission, movers) for index, store in enumerate(stores)
        ]
        for group, demotion in zip(cache.groups, self._demotions, strict=True):
            group.holdings.keep_with(
                demotion if group.snapshots is None else _WithTails(demotion, self._tail_leaves, self._tail_hit)
            )
        cache.watch_states(self._states_kept)

    def now(self) -> float:
        """The time by the clock of those who move."""
        return self._movers.now()

    @property
    def answers_at_once(self) -> bool:
        """Whether all tiers know from memory what they hold."""
        return all(tier.is_instant for tier in self.tiers)

    @property
    def tiers_off(self) -> tuple[str, ...]:
        """Those that have failed, and are left alone for now."""
        return tuple(tier.name for tier in self.tiers if tier.fault is not None)

    def seek(self, hit: Hit, limit: int) -> Future[Plan | None]:
        """What tiers have of a prompt beyond `hit`, up to `limit` tokens; answered at once where they can."""
        matches = zip(self._cache.groups, hit.matches, strict=True)
        reaches = [group.reach(match, len(hit.key) // TOKEN_NBYTES) for group, match in matches]
        wanted = Wanted(self._labels.of_prompt(hit.namespace, hit.key), limit, hit.num_tokens)
        if not self.answers_at_once:
            return self._movers.ask(lambda: seek(wanted, reaches, self.tiers))
        answer: Future[Plan | None] = Future()
        try:
            answer.set_result(seek(wanted, reaches, self.tiers))
        except Exception as error:
            answer.set_exception(error)
        return answer

    def num_stored(self, namespace: Namespace, tokens: Sequence[int]) -> int:
        """How many of the first `tokens` could be had from tiers alone, as if nothing were held."""
        hit = self._cache.match(namespace, tokens, len(tokens))
        matches = zip(self._cache.groups, hit.matches, strict=True)
        reaches = [group.reach(match, len(tokens)).of_nothing() for group, match in matches]
        plan = seek(Wanted(self._labels.of_prompt(namespace, hit.key), len(tokens), 0), reaches, self.tiers)
        return 0 if plan is None else plan.num_tokens

    def decide(self, plan: Plan) -> LoadDecision:
        """Whether to load what was found, or to compute it."""
        nbytes = Counter[str]()
        for group, sources in enumerate(plan.sources):
            page_nbytes, page_tokens = self._stores[group].page_nbytes, self._labels.layout.page_tokens[group]
            for source in sources:
                nbytes[source.tier.name] += page_nbytes * num_pages(source.label, page_tokens)
        return self.break_even.decide(plan.num_tokens - plan.held_tokens, nbytes)

    def begin(self, hit: Hit, plan: Plan, points: ResumePoints) -> Loading:
        """Begin to bring what `plan` found to a new sequence, which is none yet but for its pages.

        `hit` must be fresh. Raises OutOfPagesError, changing nothing, if pages cannot be had, or have gone meanwhile.
        """
        cached, fills = self._cache.attach_to_fill(hit, plan.targets, points)
        parts = [
            part
            for group, (sources, to_fill) in enumerate(zip(plan.sources, fills, strict=True))
            for part in self._parts(group, sources, to_fill)
        ]
        parts.sort(key=lambda part: self.tiers.index(part.tier))
        return Loading(cached, fills, plan, self._movers.load(parts))

    def settle(self, loading: Loading, tokens: Sequence[int]) -> bool:
        """A load has ended: seal and share its pages. False if something was missing; then the sequence is released."""
        load, plan = loading.load, loading.plan
        if load.failed:
            self.give_up(loading)
            return False
        self._cache.filled(loading.cached, loading.fills, tokens, plan.num_tokens)
        assert load.ended is not None
        self.break_even.loaded(load.nbytes, load.ended - load.begun)
        self._loaded_nbytes.update(load.nbytes)
        self._num_loaded.update(plan.num_records())
        loading.loaded_tokens = _tokens_by_tier(plan, self._cache.main_index)
        return True

    def give_up(self, loading: Loading) -> None:
        """End a load, wherever it is, and give its pages back."""
        loading.load.call_off()
        self._cache.release(loading.cached)

    def write_down(self, namespace: Namespace, tokens: Sequence[int]) -> None:
        """Have all tiers take now what is held of `tokens`, as nobody uses it for a while."""
        hit = self._cache.match(namespace, tokens, len(tokens))
        labels = self._labels.of_prompt(namespace, hit.key)
        for index, (group, match) in enumerate(zip(self._cache.groups, hit.matches, strict=True)):
            for start, end in needed_records(group, match, hit.num_tokens):
                self._demotions[index].write_down(labels.label(index, end), group.pages_of(match, start))

    def wait(self, seconds: float) -> None:
        """Wait until something has moved, or so long."""
        self._movers.wait(seconds)

    def forget(self) -> None:
        """Forget what lies in tiers, as far as it is this process's to forget.

        Takes as long as they do, so any thread may ask but the one that steps.
        """
        for below in self._below:
            below.writer.flush(CLOSE_SECONDS)
            below.tier.clear()

    def flush(self, seconds: float | None = None) -> bool:
        """Write what waits to be written; False if some of it still waits after so long."""
        ends = [below.writer.flush(seconds) for below in self._below]
        return all(ends)

    def report(self) -> list[TierReport]:
        """What there is to tell of each tier; may take as long as tiers do to answer."""
        return self._reports([below.tier.stats() for below in self._below])

    def late_report(self) -> list[TierReport]:
        """The same, at once: what tiers said when they were last asked, which others do about once a second."""
        if self._stats_asked.done():
            self._latest_stats = self._stats_asked.result() or self._latest_stats
            now = self._movers.now()
            if now - self._stats_asked_at >= STATS_SECONDS:
                self._stats_asked_at = now
                self._stats_asked = self._movers.look(lambda: [below.tier.stats() for below in self._below])
        return self._reports(self._latest_stats)

    def _reports(self, stats: Sequence[TierStats]) -> list[TierReport]:
        return [
            TierReport(
                name=below.tier.name,
                stats=told,
                staged_nbytes=below.writer.nbytes,
                num_skipped=below.writer.num_skipped,
                num_loaded=self._num_loaded[below.tier.name],
                loaded_nbytes=self._loaded_nbytes[below.tier.name],
            )
            for below, told in zip(self._below, stats, strict=True)
        ]

    def close(self) -> None:
        """Write what waits, for a while, and let go of the tiers."""
        for below in self._below:
            below.writer.close(CLOSE_SECONDS)
        self._movers.close()
        for below in self._below:
            below.tier.close()

    def _states_kept(self, sequence: CachedSequence, tokens: Sequence[int], points: Sequence[int]) -> None:
        for point in points:
            for label, pages in self._tails.of_sequence(sequence, tokens, point):
                self._demotions[label.group].beside(label, pages, is_leaving=False)

    def _tail_leaves(self, snapshot: Snapshot) -> None:
        for label, pages in self._tails.of_snapshot(snapshot):
            self._demotions[label.group].beside(label, pages, is_leaving=True)

    def _tail_hit(self, snapshot: Snapshot) -> None:
        for group, key in self._tails.keys_of_snapshot(snapshot):
            self._demotions[group].hit_records([key])

    def _parts(self, group: int, sources: Sequence[Source], fills: Sequence[Fill]) -> list[Part]:
        """What is to be read for one group. Fills of one record have their bytes from one reading."""
        store, targets = self._stores[group], dict[int, list[Sequence[int]]]()
        for fill in fills:
            targets.setdefault(fill.start, []).append(fill.pages)
        if not targets:
            return []
        place = Place(store, store.moment())
        return [Part(each.label, each.tier, place, targets[each.start]) for each in sources if each.start in targets]


class _WithTails:
    """A keeper of states, with which go the beginnings of pages that they stand in."""

    def __init__(
        self, demotion: Demotion, tail_leaves: Callable[[Snapshot], None], tail_hit: Callable[[Snapshot], None]
    ) -> None:
        self._demotion = demotion
        self._tail_leaves = tail_leaves
        self._tail_hit = tail_hit

    def held(self, snapshot: Snapshot) -> None:
        self._demotion.held(snapshot)

    def hit(self, snapshots: Sequence[Snapshot]) -> None:
        self._demotion.hit(snapshots)
        for snapshot in snapshots:
            self._tail_hit(snapshot)

    def leaves(self, snapshot: Snapshot, reason: Reason) -> None:
        self._demotion.leaves(snapshot, reason)
        if reason in (Reason.ROOM, Reason.EXPIRED):
            self._tail_leaves(snapshot)


def _tokens_by_tier(plan: Plan, main: int) -> Counter[str]:
    """How many tokens beyond those held came from which tier, by the pages of the group that keeps most."""
    tokens = Counter[str]()
    left = plan.num_tokens - plan.held_tokens
    sources = plan.sources[main] or next((each for each in plan.sources if each), ())
    for source in reversed(sources):
        own = min(left, max(source.label.num_tokens - source.start, 0) or left)
        tokens[source.tier.name] += own
        left -= own
    if left and sources:
        tokens[sources[0].tier.name] += left
    return tokens
