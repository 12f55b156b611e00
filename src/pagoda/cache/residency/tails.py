"""Takes the beginnings of pages to tiers with recurrent states, which stand between pages, too.

A prompt can go on from a state only where all of its tokens can be had. In the pool the page that the state stands in
has more of them; a tier finds a page by all of its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pagoda.cache.cache import Cache
from pagoda.cache.prefix.held import NO_PAGE
from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.snapshots import Snapshot
from pagoda.cache.residency.labels import Labels
from pagoda.cache.sequence import CachedSequence
from pagoda.cache.tiers.record import Kind, Label


class Tails:
    """Of the groups of `cache` that keep pages of tokens."""

    def __init__(self, cache: Cache, labels: Labels) -> None:
        self._cache = cache
        self._labels = labels
        kinds = labels.layout.kinds
        self._groups = [group for group, kind in enumerate(kinds) if kind is Kind.PAGE] if Kind.STATE in kinds else []

    def of_sequence(
        self, sequence: CachedSequence, tokens: Sequence[int], num_tokens: int
    ) -> Iterator[tuple[Label, tuple[int, ...]]]:
        """Labels and pages of a running sequence, whose state after so many `tokens` is kept."""
        labels = self._labels.of_prompt(sequence.namespace, token_key(tokens[:num_tokens]))
        for group in self._groups:
            index, rest = divmod(num_tokens, self._labels.layout.page_tokens[group])
            page = sequence.tables[group].pages[index] if rest else NO_PAGE
            if page != NO_PAGE:
                yield labels.label(group, num_tokens), (page,)

    def of_snapshot(self, snapshot: Snapshot) -> Iterator[tuple[Label, tuple[int, ...]]]:
        """Those that the pool still has."""
        labels = self._labels.of_prompt(snapshot.namespace, snapshot.key)
        for group in self._groups:
            rest = snapshot.num_tokens % self._labels.layout.page_tokens[group]
            match = self._cache.groups[group].match(snapshot.namespace, snapshot.key)
            if rest and self._cache.groups[group].resumable(match, snapshot.num_tokens) == snapshot.num_tokens:
                pages = self._cache.groups[group].pages_of(match, snapshot.num_tokens - rest)
                yield labels.label(group, snapshot.num_tokens), pages

    def keys_of_snapshot(self, snapshot: Snapshot) -> Iterator[tuple[int, bytes]]:
        """Groups, and what tiers find their records by, whether or not they have any."""
        labels = self._labels.of_prompt(snapshot.namespace, snapshot.key)
        for group in self._groups:
            if snapshot.num_tokens % self._labels.layout.page_tokens[group]:
                yield group, labels.key(group, snapshot.num_tokens)
