"""Takes what a sequence has out of a cache as records, and puts such records into another: what sessions are made of.

Both happen at once, on the thread that steps. A record that is not what it should be changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagoda.cache.cache import Cache, PageStore
from pagoda.cache.groups.fill import FillTarget
from pagoda.cache.groups.table import ResumePoints
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.residency.copies import blank_rest, copied
from pagoda.cache.residency.labels import Labels
from pagoda.cache.sequence import needed_records
from pagoda.cache.tiers.record import Draft, Label, Record
from pagoda.cache.transfers.base import Event, PageCopy, page_copies
from pagoda.errors import PageRecordError


class Carried(NamedTuple):
    """The first `num_tokens` of a sequence can be resumed with the pages in `drafts`, which are still to be sealed."""

    num_tokens: int
    drafts: list[Draft]


class Carrier:
    """Of `cache`, whose pages are in `stores` and called by `labels`."""

    def __init__(self, cache: Cache, stores: Sequence[PageStore], labels: Labels) -> None:
        self._cache = cache
        self._stores = tuple(stores)
        self._labels = labels

    @property
    def resumes_anywhere(self) -> bool:
        """Whether all tokens before the last that was taken out can be resumed from as well."""
        return self._cache.resumes_anywhere

    def take_out(self, namespace: Namespace, tokens: Sequence[int], told: Namespace | None = None) -> Carried:
        """Copy all pages that it takes to resume as many of `tokens` as are held.

        Labels tell the namespace `told`, if they should not tell whose they are.
        """
        hit = self._cache.match(namespace, tokens, len(tokens))
        labels = self._labels.of_prompt(told or namespace, hit.key)
        taken = list[tuple[list[Draft], Event]]()
        for group, (each, match) in enumerate(zip(self._cache.groups, hit.matches, strict=True)):
            needed = needed_records(each, match, hit.num_tokens)
            wanted = [(labels.label(group, end), each.pages_of(match, start)) for start, end in needed]
            taken.append(copied(self._stores[group], wanted))
        for group, (drafts, event) in enumerate(taken):
            event.wait()
            for draft in drafts:
                blank_rest(draft, self._stores[group], self._labels.layout.page_tokens[group])
        return Carried(hit.num_tokens, [draft for drafts, _ in taken for draft in drafts])

    def put_in(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        records: Mapping[bytes, Record],
        told: Namespace | None = None,
    ) -> int:
        """Hold `tokens`, all of which `take_out` had, with `records` by key; how many of them were not held before.

        Records tell the namespace `told`. Raises PageRecordError if one that is needed is missing, or is not what it
        should be, and OutOfPagesError if there is no room; then nothing has changed.
        """
        hit = self._cache.match(namespace, tokens, len(tokens))
        if hit.num_tokens == len(tokens):
            return 0
        labels = self._labels.of_prompt(told or namespace, hit.key)
        found: list[dict[int, Record]] = []
        for group, (each, match) in enumerate(zip(self._cache.groups, hit.matches, strict=True)):
            needed = needed_records(each, match, len(tokens))
            found.append({start: _checked(labels.label(group, end), records) for start, end in needed})
        targets = [FillTarget(len(tokens), frozenset(each)) for each in found]
        cached, fills = self._cache.attach_to_fill(hit, targets, ResumePoints(prompt_tokens=len(tokens) + 1))
        is_whole = False
        try:
            # What is not as it should be is found before any is written: pages on their way cannot be released.
            copies = [
                [copy for start, pages in to_fill for copy in _copies(by_start[start], store, pages)]
                for store, to_fill, by_start in zip(self._stores, fills, found, strict=True)
            ]
            for event in [store.write(each, store.moment()) for store, each in zip(self._stores, copies, strict=True)]:
                event.wait()
            self._cache.filled(cached, fills, tokens, len(tokens))
            is_whole = True
        finally:
            self._cache.release(cached, tokens if is_whole else ())
        return len(tokens) - hit.num_tokens


def _checked(label: Label, records: Mapping[bytes, Record]) -> Record:
    record = records.get(label.key)
    if record is None:
        raise PageRecordError("name", f"the page that ends after {label.num_tokens} tokens is missing")
    record.check_is(label)
    return record


def _copies(record: Record, store: PageStore, pages: Sequence[int]) -> Iterator[PageCopy]:
    if len(record.body) != len(pages) * store.page_nbytes:
        raise PageRecordError("nbytes", "its pages are of another size")
    body: NDArray[np.uint8] = np.frombuffer(record.body, np.uint8)
    return page_copies(pages, body, store.page_nbytes)
