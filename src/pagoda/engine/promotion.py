"""Sequences that wait for pages from tiers: asked for once, loaded if that pays, and then like any other.

While its pages come a sequence has its seat and its pages and computes nothing; others go on. What goes wrong costs
that sequence a second look at what is left, and then it computes. Knows neither how pages move nor who may start.
"""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import Future

from pagoda.cache.compression.choice import MemoryFull
from pagoda.cache.groups.table import ResumePoints
from pagoda.cache.report import LoadDecision
from pagoda.cache.residency.residency import Loading, Residency
from pagoda.cache.residency.seek import Plan
from pagoda.cache.sequence import Hit
from pagoda.engine.request import Sequence
from pagoda.errors import OutOfPagesError

logger = logging.getLogger(__name__)

# So long a sequence waits for tiers to say what they have, and for what they have to come.
ASK_SECONDS = 0.5
LOAD_SECONDS = 30.0
# How often a sequence asks again after a load that lacked something.
MOST_ATTEMPTS = 3


class Promotion:
    """Where one sequence stands with the tiers, those of which that are `off` or late cannot be asked."""

    def __init__(self) -> None:
        self.asked: float | None = None
        self.off: tuple[str, ...] = ()
        self.is_late = False
        self.num_failed = 0
        self.num_failed_records = 0
        self.answer: Future[Plan | None] | None = None
        self.loading: Loading | None = None
        self.decision: LoadDecision | None = None
        self.loaded_tokens = Counter[str]()


class Promotions:
    """Of the sequences that one scheduler starts, through `residency`; without one nothing is ever found."""

    def __init__(self, residency: Residency | None) -> None:
        self._residency = residency
        self._loading: list[Sequence] = []
        self._is_asking = False

    @property
    def is_loading_any(self) -> bool:
        """Whether pages of anybody are on their way."""
        return bool(self._loading)

    @property
    def is_waiting(self) -> bool:
        """Whether anybody waits for tiers, as far as was seen in this step."""
        return self._is_asking or self.is_loading_any

    def begin_step(self) -> list[tuple[Sequence, bool]]:
        """Those whose load is over: True with the pages in place, False where the sequence has to start anew."""
        self._is_asking = False
        ended = [each for each in self._loading if self._is_over(each)]
        return [(each, self._settle(each)) for each in ended]

    def must_wait(self, sequence: Sequence, hit: Hit) -> bool:
        """Whether a waiting sequence has to wait for what tiers say; asks them when it first comes."""
        if self._residency is None:
            return False
        is_asking = hit.is_arriving or self._is_unanswered(sequence, hit, self._residency)
        self._is_asking |= is_asking
        return is_asking

    def begin(self, sequence: Sequence, hit: Hit, points: ResumePoints) -> bool:
        """Begin to load what was found for a sequence that starts with `hit`, if there is anything and it pays."""
        plan = self._plan(sequence)
        if self._residency is None or plan is None:
            return False
        promotion = sequence.promotion
        assert promotion is not None
        promotion.answer = None  # it is true once
        if plan.num_tokens < hit.num_tokens or (plan.num_tokens == plan.held_tokens < hit.num_tokens):
            return False
        promotion.decision = self._residency.decide(plan)
        if not promotion.decision.is_loaded:
            return False
        try:
            promotion.loading = self._residency.begin(hit, plan, points)
        except OutOfPagesError:
            promotion.decision = None
            return False
        sequence.cached = promotion.loading.cached
        sequence.is_loading = True
        self._loading.append(sequence)
        return True

    def call_off(self, sequence: Sequence) -> None:
        """A loading sequence needs its pages no more; they can be released."""
        loading = self._take(sequence)
        loading.load.call_off()

    def sent_back(self, sequence: Sequence) -> None:
        """A sequence waits again, and its pages may leave the pool meanwhile. If it asked for it, tiers take them."""
        if sequence.promotion is not None:
            sequence.promotion.asked = None
        if self._residency is None or sequence.request.memory_full is not MemoryFull.DEMOTE:
            return
        try:
            self._residency.write_down(sequence.request.namespace, sequence.tokens)
            sequence.request.metrics.gave_way[MemoryFull.DEMOTE] += 1
        except Exception:
            logger.exception("Pages of a request that waits again could not be written to tiers")

    def computed(self, num_tokens: int, seconds: float) -> None:
        """A step computed so many tokens in so long."""
        if self._residency is not None:
            self._residency.break_even.computed(num_tokens, seconds)

    def wait(self, seconds: float) -> None:
        """Wait until something has come, or so long."""
        if self._residency is not None:
            self._residency.wait(seconds)

    def _is_unanswered(self, sequence: Sequence, hit: Hit, residency: Residency) -> bool:
        promotion = sequence.promotion = sequence.promotion or Promotion()
        if promotion.asked is None:
            promotion.asked = residency.now()
            promotion.off = residency.tiers_off
            promotion.answer = residency.seek(hit, sequence.num_resumable)
        answer = promotion.answer
        if answer is None:
            return False
        if not answer.done():
            if residency.now() - promotion.asked <= ASK_SECONDS:
                return True
            promotion.answer, promotion.is_late = None, True
        elif residency.answers_at_once and (plan := self._plan(sequence)) and plan.held_tokens != hit.num_tokens:
            promotion.answer = residency.seek(hit, sequence.num_resumable)  # the pool has changed since
        return False

    def _plan(self, sequence: Sequence) -> Plan | None:
        answer = None if sequence.promotion is None else sequence.promotion.answer
        if answer is None or not answer.done():
            return None
        try:
            return answer.result()
        except Exception:
            logger.exception("What tiers have of a prompt could not be found out")
            return None

    def _is_over(self, sequence: Sequence) -> bool:
        assert self._residency is not None
        assert sequence.promotion is not None
        assert sequence.promotion.loading is not None
        load = sequence.promotion.loading.load
        return load.is_done or self._residency.now() - load.begun > LOAD_SECONDS

    def _settle(self, sequence: Sequence) -> bool:
        assert self._residency is not None
        assert sequence.promotion is not None
        promotion, loading = sequence.promotion, self._take(sequence)
        sequence.request.metrics.phases.promotion += self._residency.now() - loading.load.begun
        try:
            if loading.load.is_done and self._residency.settle(loading, sequence.tokens):
                promotion.loaded_tokens = loading.loaded_tokens
                return True
        except Exception:
            logger.exception("Pages that had come from tiers could not be kept")
            self._residency.give_up(loading)
        if not loading.load.is_done:
            self._residency.give_up(loading)
        if loading.load.failed:
            reason = next(iter(loading.load.failed.values()))
            logger.warning("%d pages from tiers were not used: %s", len(loading.load.failed), reason)
        sequence.cached = None
        promotion.num_failed += 1
        promotion.num_failed_records += max(len(loading.load.failed), 1)
        if loading.load.is_done and promotion.num_failed < MOST_ATTEMPTS:
            promotion.asked = None
        return False

    def _take(self, sequence: Sequence) -> Loading:
        self._loading.remove(sequence)
        sequence.is_loading = False
        assert sequence.promotion is not None
        loading, sequence.promotion.loading = sequence.promotion.loading, None
        assert loading is not None
        return loading
