"""Who goes on with some of its tokens when pages are short, so that nobody is sent back.

Those that asked for it (`memory_full`), the youngest first, each at most once: after that its policy says when it is
compressed. Knows counts of pages; what is kept is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from pagoda.cache.cache import Cache
from pagoda.cache.sequence import short_groups
from pagoda.engine.request import Sequence


class Shrinking:
    """Of sequences in `cache`, by `compress`; tokens of the layer groups `indices` can be left out."""

    def __init__(self, cache: Cache, indices: Collection[int], compress: Callable[[Sequence], None]) -> None:
        self._cache = cache
        self._indices = indices
        self._compress = compress

    def first_for(self, sequence: Sequence, num_tokens: int, running: Iterable[Sequence]) -> Sequence | None:
        """The first of `running` that could leave `sequence` pages for `num_tokens` more, where these are short."""
        asking = sequence.growing
        assert asking is not None
        candidates = [each for each in running if self._can_begin(each)]
        short = list(short_groups(self._cache.groups, asking, num_tokens)) if candidates else []
        indices = [index for index in self._indices if self._cache.groups[index] in short]
        for other in candidates:
            assert other.cached is not None
            # What it saves itself it can have at once; others need a page again for their next token.
            least = 0 if other is sequence else 1
            if self._saves(other, indices, least) and self._cache.tenants.can_free_pages_for(
                other.cached, asking, num_tokens
            ):
                return other
        return None

    def helps(self, sequence: Sequence) -> bool:
        """Whether a running sequence could leave others any pages."""
        return self._can_begin(sequence) and self._saves(sequence, self._indices, 1)

    def shrink(self, sequence: Sequence) -> None:
        """Compress it. Raises OutOfPagesError if there is no room for what it keeps: it must start again then."""
        assert sequence.compression is not None
        assert sequence.cached is not None
        sequence.compression.begin_now(sequence.cached.num_tokens)
        self._compress(sequence)

    def _can_begin(self, sequence: Sequence) -> bool:
        """Whether all that is to be computed before its next token is, and it was not compressed before."""
        if sequence.compression is None or not sequence.compression.is_undecided:
            return False
        has_answered = sequence.num_output_tokens > 0 and sequence.num_uncomputed <= 1
        return has_answered and not sequence.is_loading

    def _saves(self, sequence: Sequence, indices: Collection[int], least: int) -> bool:
        """Whether it has so many pages of one of these groups to give, with room for its next token."""
        assert sequence.compression is not None
        cached = sequence.cached
        assert cached is not None
        budget = sequence.compression.plan.budget(cached.num_tokens)
        if budget >= cached.num_tokens:
            return False
        return any(self._cache.num_saved(cached, index, budget + 1) >= least for index in indices)
