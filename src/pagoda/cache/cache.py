"""The cache as the engine sees it: match, attach, reserve, commit, fork, release over all layer groups at once.

A prefix hit is the deepest point from which every group can resume. Moves bytes only through the `PageStore` of each
group, so it runs as well without any (`NoBytes`). Knows neither torch nor models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any, NamedTuple, Protocol

from pagoda.cache.group import PageActions
from pagoda.cache.namespace import Namespace
from pagoda.cache.pages import Milestones, PageCounts
from pagoda.cache.radix import token_key
from pagoda.errors import OutOfPagesError


class PageStore(Protocol):
    """The bytes behind the pages of one group."""

    def prepare(self, page: int) -> None:
        """A page that holds nothing yet is about to be written."""

    def copy(self, source: int, target: int) -> None:
        """Copy all bytes of a page."""


class NoBytes:
    """Pages that hold no bytes, for simulation."""

    def prepare(self, page: int) -> None: ...

    def copy(self, source: int, target: int) -> None: ...


class CacheGroup(Protocol):
    """What one layer group answers: `PageGroup` for pages of tokens, `StateGroup` for recurrent states, `CrossGroup`.

    The latter's are outputs of encoders, which are no prefixes. Matches and tables are each group's own; costs are in
    pages.
    """

    page_tokens: int
    keeps_all: bool
    resumes_anywhere: bool
    holds_prefixes: bool
    num_evictions: int

    @property
    def counts(self) -> PageCounts: ...

    @property
    def num_available(self) -> int: ...

    def match(self, namespace: Namespace, key: bytes) -> Any: ...

    def matched_tokens(self, match: Any) -> int: ...

    def resumable(self, match: Any, num_tokens: int) -> int: ...

    def attach_cost(self, match: Any, num_tokens: int) -> int: ...

    def growth_cost(self, num_tokens: int, num_new_tokens: int, step_tokens: int) -> int: ...

    def spare_pages(self, num_sequences: int) -> int: ...

    def attach(
        self, namespace: Namespace, match: Any, num_tokens: int, milestones: Milestones
    ) -> tuple[Any, PageActions]: ...

    def reserve_cost(self, table: Any, num_tokens: int) -> int: ...

    def reserve(self, table: Any, num_tokens: int) -> PageActions: ...

    def commit(self, table: Any, tokens: Sequence[int], num_tokens: int) -> None: ...

    def fork(self, table: Any) -> Any: ...

    def release(self, table: Any, tokens: Sequence[int], keep: bool) -> None: ...

    def next_page(self, namespace: Namespace, match: Any, tokens: Sequence[int]) -> object | None: ...

    def page_being_written(self, namespace: Namespace, table: Any, tokens: Sequence[int]) -> object | None: ...

    def reset(self) -> int: ...

    def check_integrity(self, tables: Sequence[Any]) -> None: ...


class Hit(NamedTuple):
    """A match in every group, and the tokens all of them can resume from. Valid until the cache changes.

    `branch_tokens` are known to some group: another sequence went its own way there. `num_encoder_tokens` are held of
    the encoder's output.
    """

    namespace: Namespace
    matches: tuple[Any, ...]
    num_tokens: int
    branch_tokens: int
    num_encoder_tokens: int


@dataclass(eq=False)
class CachedSequence:
    """The page tables of one sequence, one per group."""

    namespace: Namespace
    tables: tuple[Any, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens whose keys and values are in the pages, and which the states have seen."""
        return int(self.tables[0].num_tokens)


@dataclass(frozen=True)
class CacheStats:
    """A snapshot: `groups` has the page counts of each layer group; the last three count since the start."""

    groups: tuple[PageCounts, ...]
    tokens_stored: int
    token_slots_allocated: int
    hit_tokens: int
    queried_tokens: int
    evicted_pages: int

    @property
    def utilization(self) -> float:
        """Tokens held by running sequences / token slots of the pages allocated to them (group that keeps most)."""
        return self.tokens_stored / self.token_slots_allocated if self.token_slots_allocated else 1.0

    @property
    def hit_rate(self) -> float:
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0


class Cache:
    """Pages of every layer group of a model, shared by prefix.

    Every method either succeeds or raises before any state changes.
    """

    def __init__(self, groups: Sequence[CacheGroup], stores: Sequence[PageStore]) -> None:
        self._groups = tuple(groups)
        self._stores = tuple(stores)
        # The group that knows most of a prefix: one that keeps all tokens, if there is one.
        self._main = next((index for index, group in enumerate(self._groups) if group.keeps_all), 0)
        self._sequences: set[CachedSequence] = set()
        self._hit_tokens = 0
        self._queried_tokens = 0

    def match(self, namespace: Namespace, tokens: Sequence[int], limit: int) -> Hit:
        """How many of the first `limit` of `tokens` need not be computed. Changes nothing."""
        key = token_key(tokens)
        matches = tuple(group.match(namespace, key) for group in self._groups)
        pairs = tuple(zip(self._groups, matches, strict=True))
        matched = [group.matched_tokens(match) for group, match in pairs if group.holds_prefixes]
        num_encoder_tokens = sum(group.matched_tokens(match) for group, match in pairs if not group.holds_prefixes)
        num_tokens = self._resumable(matches, min(limit, *matched))
        return Hit(namespace, matches, num_tokens, min(limit, max(matched)), num_encoder_tokens)

    def whole_pages(self, hit: Hit) -> Hit:
        """The part of `hit` that ends with a page in every group, so that nothing needs to be copied."""
        multiple = lcm(*(group.page_tokens for group in self._groups))
        return hit._replace(num_tokens=self._resumable(hit.matches, hit.num_tokens, multiple))

    @property
    def resumes_anywhere(self) -> bool:
        """Whether any token can be resumed from whose pages are held; recurrent states must have been copied there."""
        return all(group.resumes_anywhere for group in self._groups)

    def can_attach(self, hit: Hit, num_new_tokens: int, step_tokens: int | None = None, num_running: int = 0) -> bool:
        """Whether `hit` and room for `num_new_tokens` more can be had, and `num_running` sequences can still grow.

        Those are computed `step_tokens` at a time (None: all at once), so that windows can move on between.
        """
        step_tokens = num_new_tokens if step_tokens is None else step_tokens
        return all(
            group.attach_cost(match, hit.num_tokens)
            + group.growth_cost(hit.num_tokens, num_new_tokens, step_tokens)
            + group.spare_pages(num_running)
            <= group.num_available
            for group, match in zip(self._groups, hit.matches, strict=True)
        )

    def attach(self, hit: Hit, num_prompt_tokens: int) -> CachedSequence:
        """A new sequence that starts with the tokens of a fresh `hit`. `num_prompt_tokens` is for the hit rate."""
        if not self.can_attach(hit, num_new_tokens=0):
            raise OutOfPagesError("No page can be had to copy this hit to; wait for a sequence to end.")
        pairs = zip(self._groups, hit.matches, strict=True)
        milestones = Milestones(hit.branch_tokens, num_prompt_tokens)
        attached = [group.attach(hit.namespace, match, hit.num_tokens, milestones) for group, match in pairs]
        self._perform([actions for _, actions in attached])
        sequence = CachedSequence(hit.namespace, tuple(table for table, _ in attached))
        self._sequences.add(sequence)
        self._hit_tokens += hit.num_tokens
        self._queried_tokens += num_prompt_tokens
        return sequence

    def can_reserve(self, sequence: CachedSequence, num_tokens: int) -> bool:
        return all(
            group.reserve_cost(table, num_tokens) <= group.num_available
            for group, table in zip(self._groups, sequence.tables, strict=True)
        )

    def reserve(self, sequence: CachedSequence, num_tokens: int) -> bool:
        """Make room for `num_tokens` more tokens; False, and nothing changed, if some group has no page for them."""
        if not self.can_reserve(sequence, num_tokens):
            return False
        pairs = zip(self._groups, sequence.tables, strict=True)
        self._perform([group.reserve(table, num_tokens) for group, table in pairs])
        return True

    def commit(self, sequence: CachedSequence, tokens: Sequence[int], num_tokens: int) -> None:
        """The keys and values of the first `num_tokens` of `tokens` are written; full pages become shareable."""
        for group, table in zip(self._groups, sequence.tables, strict=True):
            group.commit(table, tokens, num_tokens)

    def fork(self, sequence: CachedSequence) -> CachedSequence:
        """A second sequence with the same tokens so far; pages are shared until one of them writes."""
        pairs = zip(self._groups, sequence.tables, strict=True)
        tables = tuple(group.fork(table) for group, table in pairs)
        twin = CachedSequence(sequence.namespace, tables)
        self._sequences.add(twin)
        return twin

    def release(self, sequence: CachedSequence, tokens: Sequence[int] = (), keep: bool = True) -> None:
        """End a sequence of `tokens`. Its pages stay hittable, unless their content is in doubt (`keep` False)."""
        self._sequences.remove(sequence)
        for group, table in zip(self._groups, sequence.tables, strict=True):
            group.release(table, tokens, keep)

    def next_page(self, hit: Hit, tokens: Sequence[int]) -> object | None:
        """What stands for the first page that `hit` lacks of `tokens`: equal for two callers that would compute the
        same.

        None if the rest of `tokens` does not fill a page.
        """
        return self._groups[self._main].next_page(hit.namespace, hit.matches[self._main], tokens)

    def page_being_written(self, sequence: CachedSequence, tokens: Sequence[int]) -> object | None:
        """`next_page` as a running sequence sees it: the page that `tokens` will fill next."""
        return self._groups[self._main].page_being_written(sequence.namespace, sequence.tables[self._main], tokens)

    def reset(self) -> int:
        """Forget every page that no sequence uses; returns how many there were."""
        return sum(group.reset() for group in self._groups)

    def stats(self) -> CacheStats:
        size = self._groups[self._main].page_tokens
        tables = [sequence.tables[self._main] for sequence in self._sequences]
        shared = {
            page: min(size, table.num_tokens - index * size)
            for table in tables
            for index, page in enumerate(table.held, start=table.num_dropped)
        }
        return CacheStats(
            groups=tuple(group.counts for group in self._groups),
            tokens_stored=sum(max(tokens, 0) for tokens in shared.values()),
            token_slots_allocated=len(shared) * size,
            hit_tokens=self._hit_tokens,
            queried_tokens=self._queried_tokens,
            evicted_pages=sum(group.num_evictions for group in self._groups),
        )

    def check_integrity(self) -> None:
        """Raise IntegrityError unless free + open + in use + idle = total and every count is what the tables say."""
        for index, group in enumerate(self._groups):
            group.check_integrity([sequence.tables[index] for sequence in self._sequences])

    def _resumable(self, matches: Sequence[Any], num_tokens: int, multiple: int = 1) -> int:
        """The deepest point up to `num_tokens`, a multiple of `multiple`, from which every group can resume."""
        while True:
            num_tokens -= num_tokens % multiple
            pairs = zip(self._groups, matches, strict=True)
            resumable = min(group.resumable(match, num_tokens) for group, match in pairs)
            if resumable == num_tokens:
                return num_tokens
            num_tokens = resumable

    def _perform(self, actions: Sequence[PageActions]) -> None:
        for store, action in zip(self._stores, actions, strict=True):
            for page in action.fresh:
                store.prepare(page)
            for source, target in action.copies:
                store.copy(source, target)
