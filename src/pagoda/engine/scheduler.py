"""Which sequences advance in the next step, and by how many tokens.

Continuous batching (Orca, OSDI 2022) with chunked prefill (Sarathi-Serve, arXiv 2403.02310): decodes first, then
running prefills, then waiting requests in order of arrival, all within one token budget. When pages run short the
youngest sequence whose pages can help is sent back to wait; its pages stay hittable, so little is computed again.

Where tenants have shares, one that waits for pages holds up others of its tenant alone, and while it waits others start
only from what is left of their own shares, which it could never have. A tenant's leases end early rather than keep its
own sequences waiting. Integers only, no tensors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice

from pagoda.cache.cache import Cache, Hit
from pagoda.cache.namespace import Namespace
from pagoda.cache.radix import common_tokens, token_key
from pagoda.engine.request import Phase, Sequence

Plan = dict[Sequence, int]

# How many waiting sequences are looked at for tokens that they share with the next one.
MAX_COMPARED = 32


class Scheduler:
    """Waiting and running sequences over one cache."""

    def __init__(
        self, cache: Cache, max_num_seqs: int, max_num_batched_tokens: int, max_scored_tokens: int | None = None
    ) -> None:
        self._cache = cache
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_scored_tokens = max_scored_tokens or max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def fork(self, sequence: Sequence, twins: Iterable[Sequence]) -> None:
        """Let `twins` run on from where `sequence` stands, sharing its pages."""
        assert sequence.cached is not None
        for twin in twins:
            twin.cached = self._cache.fork(sequence.cached)
            twin.phase = Phase.RUNNING
            self.running.append(twin)

    def remove(self, sequence: Sequence, keep_pages: bool = True) -> None:
        """Take a sequence out, wherever it is; with `keep_pages` off its pages are forgotten."""
        if sequence.phase is Phase.RUNNING:
            self.running.remove(sequence)
        elif sequence.phase is Phase.WAITING and sequence in self.waiting:
            self.waiting.remove(sequence)
        sequence.phase = Phase.FINISHED
        self._release(sequence, keep_pages)

    def schedule(self) -> Plan:
        """Tokens to compute per sequence, with room for them reserved. Empty only if nothing can advance."""
        plan: Plan = {}
        self._cache.expire()
        # Decodes first: a long prefill must not stall those who are already reading.
        for sequence in sorted(self.running, key=lambda sequence: sequence.num_uncomputed > 1):
            budget = self._room_for(sequence, self._max_num_batched_tokens - sum(plan.values()), plan)
            if sequence.phase is Phase.RUNNING and budget:
                self._advance(sequence, min(sequence.num_uncomputed, budget), plan)
        self._admit(plan)
        return plan

    def _advance(self, sequence: Sequence, num_tokens: int, plan: Plan) -> None:
        """Plan a running sequence, sending back the youngest ones until its pages can be had."""
        assert sequence.cached is not None
        while not self._cache.reserve(sequence.cached, num_tokens):
            victim = self._victim(sequence, num_tokens)
            if victim is sequence and self._revoke_lease(sequence):
                continue
            self._preempt(victim)
            plan.pop(victim, None)
            if victim is sequence:
                return
        plan[sequence] = num_tokens

    def _victim(self, sequence: Sequence, num_tokens: int) -> Sequence:
        """The youngest whose pages `sequence` can have; itself, if there is no other."""
        assert sequence.cached is not None
        return next(
            other
            for other in reversed(self.running)
            if other is sequence
            or (other.cached is not None and self._cache.is_in_the_way(other.cached, sequence.cached, num_tokens))
        )

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence, keep_pages=True)
        sequence.phase = Phase.WAITING
        sequence.request.metrics.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _admit(self, plan: Plan) -> None:
        """Start waiting sequences in order of arrival while tokens, seats and pages last.

        One whose next page a running prefill is about to write is passed over: it can share that page a step later.
        So is one whose prompt is to be scored, if others take up all that can be scored in this step. What encoders
        have to read counts as tokens of the step.
        """
        being_written = {self._page_being_written(sequence) for sequence in self.running} - {None}
        passed_over: list[Sequence] = []
        held_up: list[Namespace] = []
        encoded = 0
        while self.waiting and (budget := self._max_num_batched_tokens - sum(plan.values()) - encoded) > 0:
            sequence = self.waiting[0]
            if any(self._cache.share_account(sequence.request.namespace, each) for each in held_up):
                passed_over.append(self.waiting.popleft())
                continue
            room = self._room_for(sequence, budget, plan)
            hit = self._cache.match(sequence.request.namespace, sequence.tokens, limit=sequence.num_resumable)
            can_share = not sequence.num_unscored and self._cache.next_page(hit, sequence.tokens) in being_written
            if can_share or not room:
                passed_over.append(self.waiting.popleft())
                continue
            if not self._cache.resumes_anywhere:
                hit = self._parting_from_others(sequence, hit)
            # An encoder reads its input in one step, however long it is; a second one must fit beside.
            to_encode = sequence.request.namespace.num_encoder_tokens - hit.num_encoder_tokens
            if (encoded and to_encode >= budget) or not self._has_seats(sequence):
                break
            fitting = self._fitting(sequence, hit, only_share=bool(held_up))
            if fitting is None:
                if not held_up and self._revoke_lease(sequence):
                    continue
                if not self._cache.has_shares:
                    break
                held_up.append(sequence.request.namespace)
                continue
            self._start(sequence, fitting, room, plan)
            encoded += to_encode
            self.waiting.popleft()
            being_written |= {self._page_being_written(sequence)} - {None}
        self.waiting.extendleft(reversed(passed_over))

    def _has_seats(self, sequence: Sequence) -> bool:
        return sum(map(_seats, self.running)) + _seats(sequence) <= self._max_num_seqs

    def _revoke_lease(self, sequence: Sequence) -> bool:
        """End a lease of the sequence's own tenant, if only leases can keep its only sequence from its pages."""
        namespace = sequence.request.namespace
        others = (each.request.namespace for each in self.running if each is not sequence)
        if any(self._cache.share_account(other, namespace) for other in others):
            return False
        return self._cache.revoke_lease(namespace, sequence.tokens)

    def _start(self, sequence: Sequence, fitting: Hit, budget: int, plan: Plan) -> None:
        """Run a waiting sequence from what the cache holds of it, for which there is room."""
        breakpoints = tuple(each.num_tokens for each in sequence.request.breakpoints)
        sequence.cached = self._cache.attach(fitting, len(sequence.tokens), breakpoints)
        num_tokens = min(sequence.num_uncomputed, budget)
        reserved = self._cache.reserve(sequence.cached, num_tokens)
        assert reserved, "the cache promised these pages"
        sequence.phase = Phase.RUNNING
        self.running.append(sequence)
        plan[sequence] = num_tokens
        if sequence.request.num_cached_tokens is None:
            sequence.request.num_cached_tokens = fitting.num_tokens
            sequence.request.num_cached_encoder_tokens = fitting.num_encoder_tokens

    def _room_for(self, sequence: Sequence, budget: int, plan: Plan) -> int:
        """What a sequence may have of `budget`: less if its prompt is to be scored, as logits are large."""
        if not sequence.num_unscored:
            return budget
        scored = sum(num_tokens for each, num_tokens in plan.items() if each.num_unscored)
        return min(budget, self._max_scored_tokens - scored)

    def _parting_from_others(self, sequence: Sequence, hit: Hit) -> Hit:
        """`hit` with the deepest token that another waiting sequence shares as a place where prompts part."""
        key = token_key(sequence.tokens)
        others = islice((each for each in self.waiting if each is not sequence), MAX_COMPARED)
        same = (each for each in others if each.request.namespace == sequence.request.namespace)
        shared = max((common_tokens(key, token_key(each.tokens)) for each in same), default=0)
        return hit._replace(branch_tokens=max(hit.branch_tokens, shared))

    def _fitting(self, sequence: Sequence, hit: Hit, only_share: bool) -> Hit | None:
        """The hit, or its whole pages, if all known tokens fit; running sequences keep room for a page each.

        With `only_share` they must fit into what is left of the tenant's own share.
        """
        step_tokens, running = self._max_num_batched_tokens, [each.request.namespace for each in self.running]
        for candidate in (hit, self._cache.whole_pages(hit)):
            num_new_tokens = len(sequence.tokens) - candidate.num_tokens
            if not only_share and self._cache.can_attach(candidate, num_new_tokens, step_tokens, running):
                return candidate
            if self._cache.has_shares and self._cache.can_attach_within_share(
                candidate, num_new_tokens, step_tokens, num_running=self._num_running_beside(sequence)
            ):
                return candidate
        return None

    def _num_running_beside(self, sequence: Sequence) -> int:
        """Running sequences that pay from the same share."""
        namespace = sequence.request.namespace
        return sum(self._cache.share_account(each.request.namespace, namespace) for each in self.running)

    def _page_being_written(self, sequence: Sequence) -> object | None:
        assert sequence.cached is not None
        return self._cache.page_being_written(sequence.cached, sequence.tokens)

    def _release(self, sequence: Sequence, keep_pages: bool) -> None:
        if sequence.cached is not None:
            self._cache.release(sequence.cached, sequence.tokens, keep_pages)
            sequence.cached = None


def _seats(sequence: Sequence) -> int:
    """A prompt keeps seats for all the samples it will fork into."""
    return sequence.request.params.n if sequence.num_output_tokens == 0 else 1
