"""What the cache would go on from: the earlier prompt is put through a cache without bytes, and the later looked up.

So windows and recurrent states, from which no more than some tokens can be resumed, are what they are in the engine.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from pagoda.cache.cache import Cache, NoBytes
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.base import CacheGroup
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll, KeepRule
from pagoda.cache.groups.state import SnapshotRule, StateGroup
from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.cache.prefix.namespace import Namespace
from pagoda.layouts.spec import CacheSpec, Reach

SPARE_PAGES = 64
ONE = Namespace()


class Rehearsal:
    """A cache for a model that leaves behind what `spec` says, computed `step_tokens` at a time.

    `interval_tokens` lie between copies of recurrent states (None: there are none on the way).
    """

    def __init__(
        self, spec: CacheSpec, page_tokens: int, interval_tokens: int | None = None, step_tokens: int = 2048
    ) -> None:
        self._spec = spec
        self._page_tokens = page_tokens
        self._interval_tokens = interval_tokens
        self._step_tokens = step_tokens

    def resumed_tokens(self, earlier: Sequence[int], later: Sequence[int]) -> int:
        """How many tokens of `later` need not be computed once `earlier` has been."""
        groups = self._groups(len(earlier) + len(later))
        cache = Cache(groups, [NoBytes()] * len(groups))
        tokens = array(TOKEN_TYPE, earlier)
        sequence = cache.attach(cache.match(ONE, tokens, 0), len(tokens))
        for start in range(0, len(tokens), self._step_tokens):
            stop = min(start + self._step_tokens, len(tokens))
            cache.reserve(sequence, stop - start)
            cache.commit(sequence, tokens, stop)
        cache.release(sequence, tokens)
        return cache.match(ONE, array(TOKEN_TYPE, later), len(later) - 1).num_tokens

    def _groups(self, num_tokens: int) -> list[CacheGroup]:
        num_pages = num_tokens // self._page_tokens + SPARE_PAGES
        rules: list[KeepRule] = [group for group in self._spec.groups if group.reach is not Reach.ENCODER]
        rules = rules or [KeepAll()]  # pages of nothing tell where prompts part
        groups: list[CacheGroup] = [PageGroup(num_pages, self._page_tokens, LRU(), rule) for rule in rules]
        if self._spec.states:
            groups.append(StateGroup(num_pages, LRU(), SnapshotRule(self._interval_tokens, self._page_tokens)))
        return groups
