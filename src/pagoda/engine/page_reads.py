"""Counts how many pages are read, and how many are not, where rows choose.

Reckoned from lengths and budgets, as kernels do by definition; nothing is asked of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Sequence as Sequenced

from pagoda.formats.page import PageGeometry


class PageReads:
    """Of groups whose pages have these `geometries`; a page counts once, whatever the number of its layers."""

    def __init__(self, geometries: Sequenced[PageGeometry]) -> None:
        self._geometries = geometries
        self._num_read = 0
        self._num_skipped = 0

    @property
    def counts(self) -> tuple[int, int]:
        """Pages read, and pages skipped."""
        return self._num_read, self._num_skipped

    def count(self, groups: Collection[int], lengths: Iterable[int], most_pages: int, first_layer: int) -> None:
        """Rows see `lengths` tokens each, and read at most `most_pages` in layers of `groups` from a first one on."""
        for geometry in (self._geometries[group] for group in groups):
            if first_layer >= len(geometry.slots):
                continue
            for length in lengths:
                num_pages = -(-length // geometry.page_tokens)
                self._num_read += min(num_pages, most_pages)
                self._num_skipped += max(num_pages - most_pages, 0)
