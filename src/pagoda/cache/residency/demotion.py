"""Copies what leaves the pool, or was sealed, to tiers below it: which of them, and when, a policy of writing says.

Runs where pages come and go, so it only copies bytes; others do the rest (`movers.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pagoda.cache.prefix.held import Held, Reason
from pagoda.cache.residency.admission import Admission
from pagoda.cache.residency.labels import Labels
from pagoda.cache.residency.movers import Movers, Writing
from pagoda.cache.tiers.base import Tier
from pagoda.cache.tiers.record import Kind, Label

if TYPE_CHECKING:
    from pagoda.cache.cache import PageStore


class Below:
    """A tier, what writes to it, and whether it `persists` when the process ends."""

    def __init__(self, tier: Tier, writer: Writing, persists: bool) -> None:
        self.tier = tier
        self.writer = writer
        self.persists = persists

    @property
    def is_told_of_hits(self) -> bool:
        """Whether it can note hits at no cost; what does not persist holds what the pool has not."""
        return self.persists and self.tier.is_instant

    def lacks(self, key: bytes) -> bool:
        """Whether a record is neither there nor on its way, as far as can be told at once."""
        return not self.writer.waits(key) and not (self.tier.is_instant and self.tier.contains([key])[0])


class Demotion:
    """Of the pages of one layer group, number `group`, whose bytes are in `store`; it is told of them as a `Keeper`."""

    def __init__(
        self,
        group: int,
        store: PageStore,
        labels: Labels,
        below: Sequence[Below],
        admission: Admission,
        movers: Movers,
    ) -> None:
        self._group = group
        self._store = store
        self._page_tokens = labels.layout.page_tokens[group]
        self._below = below
        self._admission = admission
        self._movers = movers
        naming: dict[Kind, tuple[Callable[[int, Any], Label], Callable[[int, Any], bytes]]] = {
            Kind.PAGE: (labels.of_node, labels.key_of_node),
            Kind.STATE: (labels.of_snapshot, lambda group, held: labels.of_snapshot(group, held).key),
            Kind.ENCODER: (labels.of_entry, lambda group, held: labels.of_entry(group, held).key),
        }
        self._label, self._key = naming[labels.layout.kinds[group]]

    def held(self, held: Held) -> None:
        """It is whole and can be found."""
        if self._admission.remembers:
            self._admission.comes(self._key(self._group, held))
        if self._admission.takes_sealed:
            self._write(held, [each for each in self._below if each.persists])

    def hit(self, things: Sequence[Held]) -> None:
        """A sequence begins with what the pool has of them."""
        if any(each.is_told_of_hits for each in self._below):
            self.hit_records([self._key(self._group, held) for held in things])

    def hit_records(self, keys: list[bytes]) -> None:
        """Let tiers know: they keep what is hit, and else would forget what the pool always has.

        Those who find them there after the process are the ones to gain.
        """
        for each in self._below:
            if each.is_told_of_hits:
                each.writer.use(keys)

    def beside(self, label: Label, pages: Sequence[int], is_leaving: bool) -> None:
        """These are of use with a state of which tiers were told just now: that it is held, or leaves the pool."""
        if is_leaving or self._admission.takes_sealed:
            below = [each for each in self._below if each.persists or is_leaving]
            self._copy(label, pages, [each for each in below if each.lacks(label.key)])

    def write_down(self, label: Label, pages: Sequence[int]) -> None:
        """All tiers are to have these now, whatever the policy of writing says."""
        self._copy(label, pages, [each for each in self._below if each.lacks(label.key)])

    def leaves(self, held: Held, reason: Reason) -> None:
        """Its page is about to be used for something else."""
        if reason in (Reason.ROOM, Reason.EXPIRED):
            is_admitted = self._is_admitted(held)
            self._write(held, [each for each in self._below if is_admitted or not each.persists])
        elif reason is Reason.DOUBT:
            key = self._key(self._group, held)
            for each in self._below:
                each.writer.drop([key])

    def _is_admitted(self, held: Held) -> bool:
        """Whether what leaves the pool goes to tiers that outlive the process."""
        if not self._admission.remembers:
            return True
        nbytes = len(held.pages) * self._store.page_nbytes
        return self._admission.leaves(self._key(self._group, held), nbytes) or held.num_hits > 0

    def _write(self, held: Held, below: Sequence[Below]) -> None:
        if not below:
            return
        key = self._key(self._group, held)
        wanted = [each for each in below if each.lacks(key)]
        if wanted:
            self._copy(self._label(self._group, held), held.pages, wanted)

    def _copy(self, label: Label, pages: Sequence[int], below: Sequence[Below]) -> None:
        if not below:
            return
        staged = self._movers.stage(label, self._store, pages, self._page_tokens)
        for each in below:
            each.writer.offer(staged)
