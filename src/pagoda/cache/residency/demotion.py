"""Copies what leaves the pool, or was sealed, to tiers below it: which of them, and when, a policy of writing says.

Runs where pages come and go, so it only copies bytes; threads do the rest (`writer.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pagoda.cache.prefix.held import Held, Reason
from pagoda.cache.residency.copies import blank_rest, copied
from pagoda.cache.residency.labels import Labels
from pagoda.cache.residency.writer import Staged, Writer
from pagoda.cache.tiers.base import Tier
from pagoda.cache.tiers.record import Cipher, Draft, Kind, Label

if TYPE_CHECKING:
    from pagoda.cache.cache import PageStore


class WritePolicy(StrEnum):
    """When a page is written to tiers that outlive the process; host memory takes what leaves the pool."""

    SEAL = "seal"  # as soon as it is full, so that nothing is lost with the process
    EVICT = "evict"  # when it leaves the pool
    SECOND_HIT = "second-hit"  # when it leaves the pool, and another prompt had begun with it


class Below:
    """A tier, what writes to it, and whether it `persists` when the process ends."""

    def __init__(self, tier: Tier, writer: Writer, persists: bool) -> None:
        self.tier = tier
        self.writer = writer
        self.persists = persists

    def lacks(self, key: bytes) -> bool:
        """Whether a record is neither there nor on its way, as far as can be told at once."""
        return not self.writer.waits(key) and not (self.tier.is_instant and self.tier.contains([key])[0])


class Demotion:
    """Of the pages of one layer group, number `group`, whose bytes are in `store`; it is told of them as a `Keeper`."""

    def __init__(
        self, group: int, store: PageStore, labels: Labels, below: Sequence[Below], rules: DemotionRules
    ) -> None:
        self._group = group
        self._store = store
        self._page_tokens = labels.layout.page_tokens[group]
        self._below = below
        self._rules = rules
        label_of: dict[Kind, Callable[[int, Any], Label]] = {
            Kind.PAGE: labels.of_node,
            Kind.STATE: labels.of_snapshot,
            Kind.ENCODER: labels.of_entry,
        }
        self._label = label_of[labels.layout.kinds[group]]

    def held(self, held: Held) -> None:
        """It is whole and can be found."""
        if self._rules.policy is WritePolicy.SEAL:
            self._write(held, [each for each in self._below if each.persists])

    def leaves(self, held: Held, reason: Reason) -> None:
        """Its page is about to be used for something else."""
        if reason in (Reason.ROOM, Reason.EXPIRED):
            is_known = self._rules.policy is not WritePolicy.SECOND_HIT or held.num_hits > 0
            self._write(held, [each for each in self._below if is_known or not each.persists])
        elif reason is Reason.DOUBT:
            key = self._label(self._group, held).key
            for each in self._below:
                each.writer.drop([key])

    def _write(self, held: Held, below: Sequence[Below]) -> None:
        if not below:
            return
        label = self._label(self._group, held)
        wanted = [each for each in below if each.lacks(label.key)]
        if not wanted:
            return
        draft = copied(label, self._store, held.pages)
        staged = Staged(draft, self._finish, self._rules.cipher)
        for each in wanted:
            each.writer.offer(staged)

    def _finish(self, draft: Draft) -> None:
        blank_rest(draft, self._store, self._page_tokens)


@dataclass(frozen=True)
class DemotionRules:
    """When pages are written, and how."""

    policy: WritePolicy
    cipher: Cipher | None = None
