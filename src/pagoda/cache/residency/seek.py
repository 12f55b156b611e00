"""Finds how far a prompt can be resumed with what tiers hold, and which records that takes.

Works on plain data, so that it may run on any thread where a tier does not answer from memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pagoda.cache.groups.fill import Ask, FillTarget, Found, Reach
from pagoda.cache.residency.labels import PromptLabels
from pagoda.cache.tiers.base import Tier
from pagoda.cache.tiers.record import Label


class Source(NamedTuple):
    """Where a record is that begins after `start` tokens: `tier` had it when it was asked."""

    start: int
    label: Label
    tier: Tier


@dataclass(frozen=True)
class Plan:
    """A prompt can have its first `num_tokens`, of which the pool has `held_tokens`, with `sources` in each group."""

    num_tokens: int
    held_tokens: int
    sources: tuple[tuple[Source, ...], ...]

    @property
    def targets(self) -> list[FillTarget]:
        """What each group is to be filled with."""
        return [FillTarget(self.num_tokens, frozenset(each.start for each in sources)) for sources in self.sources]

    def num_records(self) -> Counter[str]:
        """By tier."""
        return Counter(source.tier.name for sources in self.sources for source in sources)


class Wanted(NamedTuple):
    """Up to `limit` tokens of a prompt are wanted, of which the pool has `held_tokens`."""

    labels: PromptLabels
    limit: int
    held_tokens: int


def seek(wanted: Wanted, reaches: Sequence[Reach], tiers: Sequence[Tier]) -> Plan | None:
    """The best that can be had of a prompt from `tiers`, of which earlier ones are faster; None if they add nothing.

    The result is whole: every group can resume there.
    """
    shelves = [_Shelf(wanted.labels, group, tiers) for group in range(len(reaches))]
    asks: list[Ask] = [shelf.ask for shelf in shelves]
    num_tokens = wanted.limit
    while True:
        deepest = min([num_tokens, *(each.deepest(num_tokens, ask) for each, ask in zip(reaches, asks, strict=True))])
        if deepest == num_tokens:
            break
        num_tokens = deepest
    num_tokens = max(num_tokens, wanted.held_tokens)
    found = [each.missing(num_tokens, ask) for each, ask in zip(reaches, asks, strict=True)]
    if not any(found):
        return None
    sources = tuple(shelf.sources(each) for shelf, each in zip(shelves, found, strict=True))
    return Plan(num_tokens, wanted.held_tokens, sources)


class _Shelf:
    """What tiers hold of the records of one group; each is asked about once."""

    def __init__(self, labels: PromptLabels, group: int, tiers: Sequence[Tier]) -> None:
        self._labels = labels
        self._group = group
        self._tiers = tiers
        self._known: dict[int, Tier | None] = {}

    def ask(self, ends: Sequence[int]) -> list[bool]:
        new = [end for end in ends if end not in self._known]
        keys = {end: self._labels.key(self._group, end) for end in new}
        for tier in self._tiers:
            if not new:
                break
            held = tier.contains([keys[end] for end in new])
            self._known |= {end: tier for end, is_held in zip(new, held, strict=True) if is_held}
            new = [end for end in new if end not in self._known]
        self._known |= dict.fromkeys(new)
        return [self._known[end] is not None for end in ends]

    def sources(self, found: Sequence[Found]) -> tuple[Source, ...]:
        sources = []
        for start, end in found:
            tier = self._known[end]
            assert tier is not None, "only what was found is wanted"
            sources.append(Source(start, self._labels.label(self._group, end), tier))
        return tuple(sources)
