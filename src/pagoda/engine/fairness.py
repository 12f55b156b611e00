"""Who may start and who gives way, where tenants share seats and pages.

Whoever waits for a seat holds up its own tenant alone. Where tenants have shares of the pages, so does one that waits
for pages, and while it waits others start only from what is left of their own shares, which it could never have. One
that holds fewer tokens than others, for its weight, does not wait: theirs give way. A tenant's leases end early rather
than keep its own sequences waiting. Only answers: whoever asks moves the sequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Sequenced

from pagoda.cache.cache import Cache
from pagoda.cache.sequence import Hit
from pagoda.engine.request import Sequence
from pagoda.engine.seats import Seats
from pagoda.engine.waiting import Waiting


class Fairness:
    """Between the sequences of `waiting` and those of `running`, which change.

    There are `num_seats`; a step computes at most `step_tokens`.
    """

    def __init__(
        self, cache: Cache, waiting: Waiting, running: Sequenced[Sequence], num_seats: int, step_tokens: int
    ) -> None:
        self._cache = cache
        self._tenants = cache.tenants
        self._waiting = waiting
        self._running = running
        self._num_seats = num_seats
        self._step_tokens = step_tokens

    @property
    def active_tenants(self) -> set[str]:
        """Those of whom somebody runs or waits."""
        return {each.request.tenant for each in self._running} | self._waiting.tenants

    def seats_for(self, sequence: Sequence) -> Seats:
        """The seats, for `sequence` beside all who want one."""
        active = self.active_tenants | {sequence.request.tenant}
        return Seats(self._num_seats, self._running, {tenant: self._waiting.weight(tenant) for tenant in active})

    def waits_behind(self, sequence: Sequence, others: Sequenced[Sequence]) -> bool:
        """Whether one of the `others`, which lack pages, could have those that `sequence` would take."""
        namespace = sequence.request.namespace
        return any(self._tenants.share_account(namespace, other.request.namespace) for other in others)

    def fitting(self, sequence: Sequence, hits: Sequenced[Hit], only_share: bool) -> Hit | None:
        """The first of the `hits` behind which all known tokens fit.

        Running sequences keep room for a page each, and for what they have to repeat. With `only_share` they must fit
        into what is left of the tenant's own share.
        """
        cache, running = self._cache, [each.request.namespace for each in self._running]
        num_owed = sum(each.num_owed_slots for each in self._running)
        beside = self._running_beside(sequence)
        num_owed_beside = sum(each.num_owed_slots for each in beside)
        for candidate in hits:
            most_slots = len(sequence.tokens) if candidate.compacted else sequence.most_slots
            num_new_tokens = most_slots - candidate.num_tokens
            if not only_share and cache.can_attach(candidate, num_new_tokens + num_owed, self._step_tokens, running):
                return candidate
            if self._tenants.have_shares and self._tenants.can_attach_within_share(
                candidate, num_new_tokens + num_owed_beside, self._step_tokens, num_running=len(beside)
            ):
                return candidate
        return None

    def victims_for_pages(self, sequence: Sequence) -> list[Sequence]:
        """Who may give way to one that waits for pages: those that hold tokens beyond their tenant's share of them.

        The youngest come first. None if with it the tenant of `sequence` would have more than its own share.
        """
        if not self._tenants.have_shares:
            return []
        held = Counter({sequence.request.tenant: len(sequence.tokens)})
        for each in self._running:
            held[each.request.tenant] += len(each.tokens)
        weights = {tenant: self._waiting.weight(tenant) for tenant in held}
        share = held.total() / sum(weights.values())
        beyond = {tenant for tenant in held if held[tenant] > share * weights[tenant]}
        if sequence.request.tenant in beyond:
            return []
        return [
            each
            for each in reversed(self._running)
            if each.request.tenant in beyond and self._tenants.is_beyond_share(each.request.namespace)
        ]

    def victim_of(self, sequence: Sequence, num_tokens: int) -> Sequence:
        """The youngest running one whose pages `sequence` can have, to compute so many tokens; itself if no other."""
        growing = sequence.growing
        assert growing is not None
        for other in reversed(self._running):
            if other is sequence or (
                other.cached is not None and self._tenants.can_free_pages_for(other.cached, growing, num_tokens)
            ):
                return other
        raise AssertionError("only a running sequence asks")

    def revoke_lease(self, sequence: Sequence) -> bool:
        """End a lease of the sequence's own tenant, if only leases can keep its only sequence from its pages."""
        namespace = sequence.request.namespace
        others = (each.request.namespace for each in self._running if each is not sequence)
        if any(self._tenants.share_account(other, namespace) for other in others):
            return False
        return self._cache.leases.revoke(namespace, sequence.tokens)

    def _running_beside(self, sequence: Sequence) -> list[Sequence]:
        """Running sequences that pay from the same share."""
        namespace = sequence.request.namespace
        return [each for each in self._running if self._tenants.share_account(each.request.namespace, namespace)]
