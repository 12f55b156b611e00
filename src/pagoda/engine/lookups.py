"""Says of each request, when it is first scheduled, what the cache had of its prompt and why it had no more.

Remembers within a bound what went and which sequences there were, so that this can be explained later. Changes nothing
of the cache; integers only, no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Series
from dataclasses import replace

from pagoda.cache.cache import Cache
from pagoda.cache.groups.base import resumable
from pagoda.cache.leases import Lease
from pagoda.cache.prefix.gone import Departure, Gone, GoneRun
from pagoda.cache.prefix.held import Held, Reason
from pagoda.cache.prefix.keys import TOKEN_NBYTES, token_key
from pagoda.cache.prefix.tree import PrefixMatch
from pagoda.cache.recent import Looked, RecentSequences, closest, resembles
from pagoda.cache.report import CacheReport, MissCause
from pagoda.cache.sequence import Hit
from pagoda.engine.promotion import Promotion
from pagoda.engine.request import Sequence

DEVICE = "device"
NOTHING_LOADED: Mapping[str, int] = {}
GONE_SHARE = 0.25  # of the memory, for pages that went
# Tiers cannot help it, or it is what they say already.
NOT_OF_TIERS = (MissCause.NONE, MissCause.COMPRESSED, MissCause.PROMPT_LOGPROBS, MissCause.DISABLED)
WENT = (MissCause.EVICTED, MissCause.TTL_EXPIRED)
CAUSES = {
    Reason.ROOM: MissCause.EVICTED,
    Reason.EXPIRED: MissCause.TTL_EXPIRED,
    Reason.RESET: MissCause.RESET,
    Reason.DOUBT: MissCause.FAILED,
}


class Lookups:
    """Of `cache`, whose pages go by `policy`, or are not shared (None). Of no `memory_nbytes` nothing is remembered."""

    def __init__(self, cache: Cache, policy: str | None, memory_nbytes: int = 0) -> None:
        self._cache = cache
        self._policy = policy
        self.memory_nbytes = memory_nbytes
        self._gone: Gone | None = None
        self._recent: RecentSequences | None = None
        if memory_nbytes:
            self._remember(int(memory_nbytes * GONE_SHARE), memory_nbytes)

    def _remember(self, gone_nbytes: int, all_nbytes: int) -> None:
        self._recent = RecentSequences(all_nbytes - gone_nbytes)
        if self._cache.main.prefixes is not None:
            gone = self._gone = Gone(gone_nbytes)
            self._cache.main.prefixes.watch_removals(gone.removed)
            self._cache.leases.watch_lapses(lambda lease: gone.lapsed(self._kept(lease)))

    @property
    def nbytes(self) -> int:
        """About as many as what is remembered takes."""
        return (self._gone.nbytes if self._gone else 0) + (self._recent.nbytes if self._recent else 0)

    def all(self) -> list[Looked]:
        """What is remembered of sequences, the oldest first."""
        return self._recent.all() if self._recent else []

    def serve(self, sequence: Sequence) -> None:
        """Pages that go from now on go for `sequence`."""
        if self._gone is not None:
            self._gone.serve(sequence.request.request_id, sequence.request.tenant)

    def serve_nobody(self) -> None:
        if self._gone is not None:
            self._gone.serve(None)

    def start(self, sequence: Sequence, hit: Hit, loaded: Mapping[str, int] = NOTHING_LOADED) -> None:
        """A sequence is about to start from a fresh `hit`, part of which was just `loaded` from tiers.

        The first time that is its request's report.
        """
        self.serve(sequence)
        request = sequence.request
        if request.cache_report is None:
            report, run = self._report(sequence, hit)
            device = hit.num_tokens - sum(loaded.values())
            report = replace(report, read_tokens={DEVICE: device, **loaded})
            if sequence.promotion is not None:
                report = _with_tiers(report, sequence.promotion)
            is_own = run is None or run.departure.tenant == request.tenant
            request.cache_report = report if is_own else report.without_departure
            if self._recent is not None:
                self._recent.add(Looked(request.request_id, hit.namespace, hit.key, len(request.prompt), report))

    def end(self, sequence: Sequence) -> None:
        """Nothing more of it will be computed."""
        if self._recent is not None and sequence.index == 0 and sequence.cached is not None:
            request = sequence.request
            self._recent.end(request.tenant, request.request_id, token_key(sequence.shareable_tokens))

    def _report(self, sequence: Sequence, hit: Hit) -> tuple[CacheReport, GoneRun | None]:
        """All that is known, which its tenant is not told where pages went for another one, and what went."""
        read, num_prompt_tokens, limit = hit.num_tokens, len(sequence.tokens), sequence.num_resumable
        known = max(min(hit.matches[self._cache.main_index].num_tokens, limit), read)
        shares = self._policy is not None
        cause, run = self._cause(sequence, hit, known) if read < limit or sequence.num_unscored else _NOTHING
        departure = None if run is None else run.departure
        first_own = sequence.first_own_token
        num_shared = num_prompt_tokens if first_own is None else min(first_own, num_prompt_tokens)
        report = CacheReport(
            prompt_tokens=num_prompt_tokens,
            read_tokens={DEVICE: read},
            uncached_tokens=num_prompt_tokens - read,
            written_tokens=max(num_shared - read, 0) if shares else 0,
            known_tokens=known,
            cause=cause,
            first_missed_token=None if cause is MissCause.NONE else read,
            missed_tokens=known - read + (0 if run is None else min(run.num_tokens, limit - known)),
            gone_at=None if departure is None else departure.when,
            gone_for=departure.whom if departure is not None and departure.reason is Reason.ROOM else None,
            policy=self._policy if departure is not None and departure.reason is Reason.ROOM else None,
        )
        return report, run

    def _cause(self, sequence: Sequence, hit: Hit, known: int) -> tuple[MissCause, GoneRun | None]:
        plain = self._plain_cause(sequence, hit)
        if plain is not None:
            return plain, None
        # Whatever costs more tokens is the cause: what is known and cannot be resumed, or what is not known.
        if known - hit.num_tokens >= sequence.num_resumable - known:
            pairs = tuple(zip(self._cache.groups, hit.matches, strict=True))
            is_whole = resumable(pairs, sequence.num_resumable) > hit.num_tokens
            return MissCause.PARTIAL_BLOCK if is_whole else MissCause.CHECKPOINT_MISSING, None
        main, match = self._cache.main, hit.matches[self._cache.main_index]
        if self._gone is None or main.prefixes is None:
            return MissCause.UNKNOWN, None
        run = self._gone.find(main.prefixes.tree.root(hit.namespace), match, hit.key, main.page_tokens)
        # A few tokens that somebody else had as well explain nothing.
        if run is None or run.num_tokens < min(main.page_tokens, (sequence.num_resumable - known) // 2):
            return _parting(match, main.page_tokens), None
        is_edited = self._is_edited(hit, known + run.num_tokens, run.num_tokens)
        return MissCause.INPUT_CHANGED if is_edited else _departed(run.departure), run

    def _plain_cause(self, sequence: Sequence, hit: Hit) -> MissCause | None:
        """One for which nothing has to be looked up."""
        if sequence.num_unscored:
            return MissCause.PROMPT_LOGPROBS
        if self._policy is None:
            return MissCause.DISABLED
        return MissCause.COMPRESSED if hit.compacted else None

    def _is_edited(self, hit: Hit, num_had: int, num_gone: int) -> bool:
        """Whether a late sequence had the first `num_had` tokens and parts from the prompt to lose more than went."""
        if self._recent is None:
            return False
        start = num_had * TOKEN_NBYTES
        near, num_shared = closest(hit.key, self._recent.beginning(hit.namespace, hit.key[:start]))
        if near is None:
            return False
        earlier, later = near.key[num_shared * TOKEN_NBYTES :], hit.key[num_shared * TOKEN_NBYTES :]
        num_lost = min(len(earlier), len(later)) // TOKEN_NBYTES
        return num_lost > num_gone + num_shared - num_had and resembles(earlier, later)

    def _kept(self, lease: Lease) -> Series[Held]:
        return lease.holds[self._cache.main_index].kept


_NOTHING: tuple[MissCause, GoneRun | None] = (MissCause.NONE, None)


def _with_tiers(report: CacheReport, promotion: Promotion) -> CacheReport:
    """What tiers had to do with it as well."""
    decision, missed = promotion.decision, report.missed_tokens
    if decision is not None and not decision.is_loaded:
        missed = max(missed, decision.num_tokens)
    return replace(
        report,
        cause=_tiers_cause(report.cause, promotion),
        missed_tokens=missed,
        load=decision,
        tiers_off=promotion.off,
        num_failed_records=promotion.num_failed_records,
    )


def _tiers_cause(cause: MissCause, promotion: Promotion) -> MissCause:
    """What kept tiers from giving what was not in memory; else the `cause` that it was not there."""
    if cause in NOT_OF_TIERS:
        return cause
    if promotion.num_failed_records:
        return MissCause.LOAD_FAILED
    if promotion.decision is not None and not promotion.decision.is_loaded:
        return MissCause.LOAD_REFUSED
    if (promotion.off or promotion.is_late) and cause in (*WENT, MissCause.NEVER_SEEN):
        return MissCause.TIER_OFF
    return MissCause.NOT_IN_TIERS if cause in WENT else cause


def _departed(departure: Departure) -> MissCause:
    """Why pages went. What made room once its lease was over had been kept for so long."""
    has_expired = departure.had_lapsed and departure.reason is Reason.ROOM
    return MissCause.TTL_EXPIRED if has_expired else CAUSES[departure.reason]


def _parting(match: PrefixMatch, page_tokens: int) -> MissCause:
    """Whether an earlier sequence ended where `match` does, or went its own way."""
    partial, path = match.partial, match.path
    if partial is not None:
        is_over = match.partial_tokens == partial.recompute_tokens and not partial.children
    else:
        is_over = bool(path) and not path[-1].children
    if is_over:
        return MissCause.CONTINUED
    return MissCause.INPUT_CHANGED if match.num_tokens >= page_tokens else MissCause.NEVER_SEEN
