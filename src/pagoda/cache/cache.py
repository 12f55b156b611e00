"""The cache as the engine sees it: match, attach, reserve, commit, fork, release over all layer groups at once.

A prefix hit is the deepest point from which every group can resume. Moves bytes only through the `PageStore` of each
group, so it runs as well without any (`NoBytes`). Knows neither torch nor models.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from math import lcm
from time import monotonic
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pagoda.cache.groups.base import CacheGroup, PageActions, resumable
from pagoda.cache.groups.compacted import CompactedKey
from pagoda.cache.groups.fill import Fill, FillTarget
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.table import NOWHERE, ResumePoints
from pagoda.cache.leases import Leases
from pagoda.cache.lifetime import Lifetime
from pagoda.cache.prefix.held import Reason
from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.sequence import CachedSequence, Hit, Kept, attach_costs, short_groups
from pagoda.cache.tenants import Tenants
from pagoda.cache.transfers.base import OVER, Event, PageCopy
from pagoda.errors import OutOfPagesError

logger = logging.getLogger(__name__)


class PageStore(Protocol):
    """The bytes behind the pages of one group. How they are copied out and in is told by `transfers.base.Transfers`."""

    @property
    def page_nbytes(self) -> int: ...

    def prepare(self, page: int) -> None:
        """A page that holds nothing yet is about to be written."""

    def copy(self, source: int, target: int) -> None:
        """Copy all bytes of a page."""

    def memory(self, nbytes: int) -> NDArray[np.uint8]:
        """Where copies of pages had better lie."""

    def read(self, copies: Sequence[PageCopy]) -> Event:
        """Copy pages as they are now."""

    def moment(self) -> Event:
        """All that was told to be computed so far."""

    def write(self, copies: Sequence[PageCopy], after: Event) -> Event:
        """Copy into pages. May be called on any thread."""

    def blank(self, body: NDArray[np.uint8], num_tokens: int) -> None:
        """Of a copy of a page, zero what is behind its first tokens."""


class NoBytes:
    """Pages that hold no bytes, for simulation; they may say that they have `nbytes`."""

    def __init__(self, nbytes: int = 0) -> None:
        self.page_nbytes = nbytes

    def prepare(self, page: int) -> None: ...

    def copy(self, source: int, target: int) -> None: ...

    def memory(self, nbytes: int) -> NDArray[np.uint8]:
        return np.zeros(nbytes, np.uint8)

    def read(self, copies: Sequence[PageCopy]) -> Event:  # noqa: ARG002
        return OVER

    def moment(self) -> Event:
        return OVER

    def write(self, copies: Sequence[PageCopy], after: Event) -> Event:  # noqa: ARG002
        return OVER

    def blank(self, body: NDArray[np.uint8], num_tokens: int) -> None: ...


class Cache:
    """Pages of every layer group of a model, shared by prefix.

    Every method either succeeds or raises with nothing changed, but where it says otherwise. `page_nbytes` of each
    group are for telling how large leases are, whose time runs by `clock`, and so does that of what nobody uses, which
    is forgotten after `lifetime_seconds` (None: never). Of the `groups`, `main` knows most of a prefix. `hit_tokens` of
    the `queried_tokens` of prompts have been found since the start; `num_compacted_hits` sequences began with what a
    prefix was compressed to.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        stores: Sequence[PageStore],
        page_nbytes: Sequence[int] | None = None,
        clock: Callable[[], float] = monotonic,
        lifetime_seconds: float | None = None,
    ) -> None:
        self.groups = tuple(groups)
        self.main_index = next((i for i, each in enumerate(groups) if each.prefixes and each.prefixes.keeps_all), 0)
        self.main = self.groups[self.main_index]
        self.tenants = Tenants(groups)
        self.leases = Leases(groups, page_nbytes or [0] * len(groups), self.tenants, clock)
        self._lifetime = Lifetime([group.holdings for group in groups], lifetime_seconds, clock)
        self.sequences: set[CachedSequence] = set()
        self.hit_tokens = 0
        self.queried_tokens = 0
        self.num_compacted_hits = 0
        self._stores = tuple(stores)
        self._on_states_kept: Callable[[CachedSequence, Sequence[int], Sequence[int]], None] | None = None

    def watch_states(self, kept: Callable[[CachedSequence, Sequence[int], Sequence[int]], None]) -> None:
        """Call `kept` with each sequence whose states were copied, its tokens, and after how many of them."""
        self._on_states_kept = kept

    def expire(self) -> None:
        """End leases whose time has come, and forget what nobody has used for too long."""
        self.leases.expire()
        self._lifetime.end()

    def match(self, namespace: Namespace, tokens: Sequence[int], limit: int) -> Hit:
        """How many of the first `limit` of `tokens` need not be computed. Changes nothing."""
        key = token_key(tokens)
        matches = tuple([group.match(namespace, key) for group in self.groups])
        num_tokens = resumable(tuple(zip(self.groups, matches, strict=True)), limit)
        known = max([match.num_tokens for match in matches])
        num_encoder_tokens = max([match.num_encoder_tokens for match in matches])
        return Hit(namespace, key, matches, num_tokens, min(limit, known), num_encoder_tokens)

    def match_compacted(self, key: CompactedKey, tokens: Sequence[int]) -> Hit | None:
        """What the first of `tokens`, which `key` names, were compressed to; None if that is not held. Changes nothing.

        Groups beside those that were compressed have to resume there from what they hold.
        """
        found = {index: self._page_group(index).prefixes.compacted.find(key) for index in key.groups}
        compacted = {index: each for index, each in found.items() if each is not None}
        if len(compacted) < len(found):
            return None
        hit = self.match(key.namespace, tokens, key.num_tokens)
        pairs = enumerate(zip(self.groups, hit.matches, strict=True))
        beside = [pair for index, pair in pairs if index not in compacted]
        if resumable(beside, key.num_tokens) < key.num_tokens:
            return None
        return hit._replace(num_tokens=key.num_tokens, compacted=compacted)

    def whole_pages(self, hit: Hit) -> Hit:
        """The part of `hit` that ends with a page in every group, so that nothing needs to be copied."""
        multiple = lcm(*(group.page_tokens for group in self.groups))
        pairs = tuple(zip(self.groups, hit.matches, strict=True))
        return hit._replace(num_tokens=resumable(pairs, hit.num_tokens, multiple))

    @property
    def resumes_anywhere(self) -> bool:
        """Whether any token can be resumed from whose pages are held; recurrent states must have been copied there."""
        return all(group.snapshots is None for group in self.groups)

    def can_attach(
        self, hit: Hit, num_new_tokens: int, step_tokens: int | None = None, running: Sequence[Namespace] = ()
    ) -> bool:
        """Whether `hit` and room for `num_new_tokens` more can be had, and sequences of `running` can still grow.

        Those are computed `step_tokens` at a time (None: all at once), so that windows can move on between.
        """
        self.leases.expire()
        namespace = hit.namespace
        for group, cost in zip(self.groups, attach_costs(self.groups, hit, num_new_tokens, step_tokens), strict=True):
            to_leave = self.tenants.pages_left_to(running, group, namespace) if running else 0
            if cost + to_leave > group.holdings.available_to(group.holdings.account_of(namespace)):
                return False
        return True

    def attach(self, hit: Hit, num_prompt_tokens: int, breakpoints: tuple[int, ...] = ()) -> CachedSequence:
        """A new sequence that starts with the tokens of a fresh `hit`, which makes leases of them last longer.

        `num_prompt_tokens` is for the hit rate. Leases are wanted after `breakpoints` tokens. Raises OutOfPagesError if
        a page to copy a hit to cannot be had.
        """
        self.leases.expire()
        sequence = self._attached(hit, ResumePoints(hit.branch_tokens, num_prompt_tokens, breakpoints))
        self.count_hit(hit.num_tokens, num_prompt_tokens)
        if not hit.compacted:
            self.leases.use(hit.namespace, hit.key, hit.num_tokens)
        return sequence

    def attach_compacted(self, key: CompactedKey, tokens: Sequence[int]) -> CachedSequence | None:
        """What the first of `tokens` were compressed to, for one that has computed them and hit what it could.

        None if that is not held, or there is no room for it and for what that one has to compute still.
        """
        hit = self.match_compacted(key, tokens)
        if hit is None or not self.can_attach(hit, num_new_tokens=0, running=(key.namespace,)):
            return None
        return self._attached(hit, NOWHERE)

    def attach_to_fill(
        self, hit: Hit, targets: Sequence[FillTarget], points: ResumePoints
    ) -> tuple[CachedSequence, list[Sequence[Fill]]]:
        """A new sequence with what `hit` has, and open pages in each group for what its target brings from elsewhere.

        All targets are of the same number of tokens. Until it is `filled` nothing but `release` may be done with it.
        Raises OutOfPagesError, changing nothing, if there is no room, or if pages have gone that were to be continued.
        """
        self.leases.expire()
        tables: list[Any] = []
        actions, fills = [], list[Sequence[Fill]]()
        try:
            for group, match, target in zip(self.groups, hit.matches, targets, strict=True):
                table, action, to_fill = group.attach_to_fill(hit.namespace, match, target, points)
                tables.append(table)
                actions.append(action)
                fills.append(to_fill)
            self._perform(actions)
        except BaseException:
            self._give_up(tables)
            raise
        for group, each in zip(self.groups, fills, strict=True):
            group.holdings.allocator.depart([page for fill in each for page in fill.pages])
        sequence = CachedSequence(hit.namespace, tuple(tables))
        self.sequences.add(sequence)
        self._lifetime.mark()
        return sequence, fills

    def filled(
        self, sequence: CachedSequence, fills: Sequence[Sequence[Fill]], tokens: Sequence[int], num_tokens: int
    ) -> None:
        """What was to be brought for the first `num_tokens` of `tokens` is there: pages are sealed and shared."""
        for group, to_fill in zip(self.groups, fills, strict=True):
            group.holdings.allocator.arrive([page for fill in to_fill for page in fill.pages])
        for group, table in zip(self.groups, sequence.tables, strict=True):
            group.filled(table, tokens, num_tokens)
        self.leases.use(sequence.namespace, token_key(tokens), num_tokens)

    def count_hit(self, num_tokens: int, num_prompt_tokens: int) -> None:
        """So many tokens of a prompt were found, for the hit rate."""
        self.hit_tokens += num_tokens
        self.queried_tokens += num_prompt_tokens

    def can_reserve(self, sequence: CachedSequence, num_tokens: int) -> bool:
        self.leases.expire()
        return not any(short_groups(self.groups, sequence, num_tokens))

    def reserve(self, sequence: CachedSequence, num_tokens: int) -> bool:
        """Make room for `num_tokens` more tokens; False, and nothing changed, if some group has no page for them.

        If it raises, what is in the pages of the sequence is in doubt: release it without keeping them.
        """
        if not self.can_reserve(sequence, num_tokens):
            return False
        pairs = zip(self.groups, sequence.tables, strict=True)
        self._perform([group.reserve(table, num_tokens) for group, table in pairs])
        return True

    def reserve_ahead(self, sequences: Sequence[CachedSequence], num_reserved: Sequence[int]) -> bool:
        """Make room for one more token of each of several sequences, behind `num_reserved` that have room already.

        Only with pages that are free: False, and nothing changed, if something would have to go, or if that raises.
        For groups of pages.
        """
        short = dict[CachedSequence, int]()
        for index, group in enumerate(self.groups):
            num_pages = 0
            for sequence, reserved in zip(sequences, num_reserved, strict=True):
                if cost := group.reserve_cost(sequence.tables[index], reserved + 1):
                    num_pages += cost
                    short[sequence] = reserved
            if num_pages > group.holdings.allocator.num_free:
                return False
        has_room = False
        try:
            has_room = all(self.reserve(sequence, reserved + 1) for sequence, reserved in short.items())
        finally:
            if not has_room:
                for sequence, reserved in short.items():
                    self.give_back(sequence, reserved)
        return has_room

    def give_back(self, sequence: CachedSequence, num_tokens: int = 0) -> None:
        """Free pages that were reserved for more than `num_tokens` to come."""
        for index, table in enumerate(sequence.tables):
            self._page_group(index).give_back(table, num_tokens)

    def commit(self, sequence: CachedSequence, tokens: Sequence[int], num_tokens: int) -> None:
        """The keys and values of the first `num_tokens` of `tokens` are written; full pages become shareable."""
        tell, points = self._on_states_kept, list[int]()
        if tell is not None:
            pairs = zip(self.groups, sequence.tables, strict=True)
            points = [point for group, table in pairs if group.snapshots is not None for point, _ in table.cuts]
        for group, table in zip(self.groups, sequence.tables, strict=True):
            group.commit(table, tokens, num_tokens)
        self._lifetime.mark()  # what a window leaves may have lain in use for long
        if tell is not None and points:
            tell(sequence, tokens, points)

    def num_saved(self, sequence: CachedSequence, index: int, num_slots: int) -> int:
        """How many more pages of one group could be had if a sequence were left so many of its tokens there."""
        return self._page_group(index).num_saved(sequence.tables[index], num_slots)

    def fork(self, sequence: CachedSequence) -> CachedSequence:
        """A second sequence with the same tokens so far; pages are shared until one of them writes."""
        tables: list[Any] = []
        try:
            for group, table in zip(self.groups, sequence.tables, strict=True):
                tables.append(group.fork(table))
        except BaseException:
            self._give_up(tables)
            raise
        twin = CachedSequence(sequence.namespace, tuple(tables))
        self.sequences.add(twin)
        return twin

    def branch(self, sequence: CachedSequence) -> CachedSequence:
        """A fork whose own pages are nobody else's, and go with it."""
        twin = self.fork(sequence)
        self.detach(twin)
        return twin

    def detach(self, sequence: CachedSequence) -> None:
        """Nobody else is to have what a sequence writes from now on. Its full pages stay hittable."""
        for group, table in zip(self.groups, sequence.tables, strict=True):
            group.detach(table)

    def compact(
        self,
        sequence: CachedSequence,
        tokens: Sequence[int],
        kept: Mapping[int, Kept],
        key: CompactedKey | None = None,
    ) -> None:
        """Let a sequence of `tokens` go on with some of them, in each group that `kept` has.

        What it writes is its own from now on in all groups. The exact pages stay hittable, and with a `key` others find
        what is left of them. Raises OutOfPagesError if there is no room: then nothing but `release` may be done with
        it.
        """
        for index, group, table in self._made_private(sequence, kept):
            num_slots, bodies, cell_starts = kept[index]
            self._write(index, group.compact(table, tokens, num_slots, cell_starts, key), bodies)

    def drop_middle(self, sequence: CachedSequence, kept: Mapping[int, tuple[int, NDArray[np.uint8]]]) -> None:
        """Let a sequence go on with its last pages, behind others: by group, how many, and the bytes of those others.

        The rest is as for `compact`.
        """
        for index, group, table in self._made_private(sequence, kept):
            num_last, bodies = kept[index]
            self._write(index, group.drop_middle(table, len(bodies), num_last), bodies)

    def release(self, sequence: CachedSequence, tokens: Sequence[int] = (), keep: bool = True) -> None:
        """End a sequence of `tokens`. Its pages stay hittable, unless their content is in doubt (`keep` False).

        Where a group fails to keep them, they go. If it raises nevertheless, it can be called again; once more than
        needed is fine.
        """
        for group, table in zip(self.groups, sequence.tables, strict=True):
            try:
                group.release(table, tokens, keep)
            except Exception:
                logger.exception("A layer group failed to keep the pages of a sequence; they are forgotten")
                keep = False
                group.release(table, tokens, keep)
        self.sequences.discard(sequence)
        self._lifetime.mark()
        if not keep:
            self.leases.end_broken()

    def missing_key(self, hit: Hit, tokens: Sequence[int]) -> object | None:
        """What stands for the first page that `hit` lacks of `tokens`: equal for two that would compute the same.

        None if the rest of `tokens` does not fill a page.
        """
        prefixes = self.main.prefixes
        return prefixes and prefixes.missing_key(hit.namespace, hit.matches[self.main_index], tokens)

    def written_key(self, sequence: CachedSequence, tokens: Sequence[int]) -> object | None:
        """`missing_key` as a running sequence sees it: of the page that `tokens` will fill next."""
        prefixes = self.main.prefixes
        return prefixes and prefixes.written_key(sequence.namespace, sequence.tables[self.main_index], tokens)

    def reset(self) -> int:
        """End every lease and forget every page that no sequence uses; returns how many there were."""
        self.leases.end_all()
        return sum(group.holdings.evict_all(Reason.RESET) for group in self.groups)

    def _attached(self, hit: Hit, points: ResumePoints) -> CachedSequence:
        # A group asks before it changes anything, but others may have changed by then.
        if len(self.groups) > 1 and not self.can_attach(hit, num_new_tokens=0):
            raise OutOfPagesError("No page can be had to copy this hit to; wait for a sequence to end.")
        tables, actions = [], []
        try:
            for index, (group, match) in enumerate(zip(self.groups, hit.matches, strict=True)):
                compacted = hit.compacted.get(index)
                if compacted is None:
                    table, action = group.attach(hit.namespace, match, hit.num_tokens, points)
                else:
                    account = group.holdings.account_of(hit.namespace)
                    table, action = compacted.shelf.attach(compacted, account)
                tables.append(table)
                actions.append(action)
            self._perform(actions)
        except BaseException:
            self._give_up(tables)
            raise
        sequence = CachedSequence(hit.namespace, tuple(tables))
        self.sequences.add(sequence)
        if hit.compacted:
            self.detach(sequence)
            self.num_compacted_hits += 1
        self._lifetime.mark()
        return sequence

    def _made_private(self, sequence: CachedSequence, indices: Collection[int]) -> Iterator[tuple[int, PageGroup, Any]]:
        """Nobody else is to have what a sequence writes from now on; the groups of these `indices`, and its tables."""
        self.leases.expire()
        for index, (group, table) in enumerate(zip(self.groups, sequence.tables, strict=True)):
            if index not in indices:
                group.detach(table)
                continue
            yield index, self._page_group(index), table
        self._lifetime.mark()

    def _page_group(self, index: int) -> PageGroup:
        group = self.groups[index]
        assert isinstance(group, PageGroup), "other groups keep no tokens"
        return group

    def _write(self, index: int, actions: PageActions, bodies: NDArray[np.uint8]) -> None:
        """Give the new pages of a group their bytes, the first of them those of `bodies`."""
        store = self._stores[index]
        for page in actions.fresh:
            store.prepare(page)
        copies = [PageCopy(page, body) for page, body in zip(actions.fresh, bodies, strict=False)]
        store.write(copies, store.moment()).wait()
        for source, target in actions.copies:
            store.copy(source, target)

    def _give_up(self, tables: Sequence[Any]) -> None:
        """Release the tables of a new sequence, as far as they are made."""
        for group, table in zip(self.groups, tables, strict=False):
            group.release(table, (), keep=True)

    def _perform(self, actions: Sequence[PageActions]) -> None:
        for store, action in zip(self._stores, actions, strict=True):
            for page in action.fresh:
                store.prepare(page)
            for source, target in action.copies:
                store.copy(source, target)
