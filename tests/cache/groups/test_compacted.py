"""What prefixes were compressed to: who shares which pages, what that takes, and when it goes."""

from __future__ import annotations

import numpy as np
import pytest

from pagoda.cache.cache import Cache, NoBytes
from pagoda.cache.compression.base import Policy
from pagoda.cache.compression.knorm import Knorm
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.compacted import CompactedKey
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.inspector import Inspector
from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.sequence import CachedSequence, Hit, Kept
from pagoda.errors import OutOfPagesError

SIZE = 4
PREFIX = list(range(19))  # five pages
POLICY = Knorm(tokens=10)


class Pages:
    """A cache of one group of so many pages."""

    def __init__(self, num_pages: int) -> None:
        self.group = PageGroup(num_pages, SIZE, LRU(), KeepAll())
        self.cache = Cache([self.group], [NoBytes()])

    @property
    def counts(self) -> tuple[int, int, int, int]:
        counts = self.group.holdings.counts
        Inspector(self.cache).check_integrity()
        return counts.free, counts.open, counts.in_use, counts.idle

    def computed(self, tokens: list[int]) -> CachedSequence:
        sequence = self.cache.attach(self.cache.match(Namespace(), tokens, 0), len(tokens))
        assert self.cache.reserve(sequence, len(tokens))
        self.cache.commit(sequence, tokens, len(tokens))
        return sequence

    def compressed(self, num_slots: int, tokens: list[int] = PREFIX, policy: Policy = POLICY) -> CachedSequence:
        sequence = self.computed(tokens)
        bodies = np.zeros((-(-num_slots // SIZE), 1), np.uint8)
        self.cache.compact(sequence, tokens, {0: Kept(num_slots, bodies)}, key_of(tokens, policy))
        return sequence

    def find(self, tokens: list[int] = PREFIX, policy: Policy = POLICY) -> Hit | None:
        return self.cache.match_compacted(key_of(tokens, policy), [*tokens, 7])

    def begun(self) -> CachedSequence:
        hit = self.find()
        assert hit is not None
        return self.cache.attach(hit, len(PREFIX) + 1)


def key_of(tokens: list[int], policy: Policy = POLICY) -> CompactedKey:
    return CompactedKey(Namespace(), policy, (0,), token_key(tokens))


def test_full_pages_are_everybodys_and_a_last_page_is_copied() -> None:
    pages = Pages(20)
    first = pages.compressed(10)
    assert pages.counts == (20 - 5 - 3 - 1, 1, 2, 5 + 1), "five exact pages and a copy of the last one are idle"
    second, third = pages.begun(), pages.begun()
    assert pages.counts == (20 - 11, 3, 2, 6)
    tables = [each.tables[0] for each in (first, second, third)]
    assert len({tuple(table.pages[:2]) for table in tables}) == 1
    assert len({table.pages[2] for table in tables}) == 3
    assert [(table.num_tokens, table.num_slots, table.is_private) for table in tables] == [(19, 10, True)] * 3
    for each in (first, second, third):
        pages.cache.release(each, PREFIX)
    assert pages.counts == (20 - 8, 0, 0, 8)
    assert pages.group.prefixes.compacted.num_pages == 3


def test_only_the_same_of_the_same_is_found() -> None:
    pages = Pages(20)
    pages.compressed(8)
    assert pages.find() is not None
    assert pages.find(policy=Knorm(tokens=9)) is None
    assert pages.find([*PREFIX, 3]) is None
    assert pages.find(PREFIX[:-1]) is None
    assert pages.cache.match_compacted(key_of(PREFIX)._replace(namespace=Namespace("salt")), PREFIX) is None


@pytest.mark.parametrize(("num_slots", "num_kept", "has_tail"), [(8, 2, False), (10, 3, True), (3, 1, True)])
@pytest.mark.parametrize("spare", [0, 1])
def test_who_begins_with_it_needs_a_page_beside_for_a_copy(
    num_slots: int, num_kept: int, has_tail: bool, spare: int
) -> None:
    """The last page cannot make room for its own copy. Without room nothing is changed."""
    pages = Pages(20)
    pages.cache.release(pages.compressed(num_slots), PREFIX)
    pages.computed([99] * SIZE * (20 - num_kept - spare))  # the exact pages go for that
    before, hit = pages.counts, pages.find()
    assert hit is not None
    fits = spare == 1 or not has_tail
    assert pages.cache.can_attach(hit, num_new_tokens=0) == fits
    assert pages.cache.can_attach(hit, num_new_tokens=SIZE) == (spare == 1 and not has_tail)
    if fits:
        pages.begun()
        assert pages.counts[3] == spare
        return
    with pytest.raises(OutOfPagesError):
        pages.begun()
    assert pages.counts == before
    assert pages.cache.num_compacted_hits == 0


def test_without_a_page_for_a_copy_of_the_last_one_nothing_is_kept() -> None:
    pages = Pages(5)
    sequence = pages.compressed(18)
    assert pages.find() is None
    assert pages.counts == (0, 1, 4, 0)
    pages.cache.release(sequence)
    assert pages.counts == (5, 0, 0, 0)


def test_the_second_who_computes_it_keeps_its_own() -> None:
    pages = Pages(30)
    first, second = pages.compressed(10), pages.compressed(10)
    assert set(first.tables[0].pages).isdisjoint(second.tables[0].pages)
    assert pages.group.prefixes.compacted.num_pages == 3
    pages.cache.release(second, PREFIX)
    assert pages.counts == (30 - 2 - 1 - 6, 1, 2, 6), "and gives them back"


def test_exact_pages_go_before_it_and_what_was_used_last_goes_last() -> None:
    second, third = ([*range(start, start + 19)] for start in (100, 200))
    pages = Pages(30)
    for tokens in (PREFIX, second, third):
        pages.cache.release(pages.compressed(10, tokens), tokens)
    pages.cache.release(pages.begun(), PREFIX)
    running = pages.computed([99] * SIZE * 6)  # all that was free
    for num_pages, left in ((10, [PREFIX, second, third]), (3, [PREFIX, third]), (5, [PREFIX, third]), (3, [PREFIX])):
        assert pages.cache.reserve(running, num_pages * SIZE)
        pages.cache.commit(running, [99] * 200, running.num_tokens + num_pages * SIZE)
        assert [tokens for tokens in (PREFIX, second, third) if pages.find(tokens)] == left


def test_the_time_of_its_last_use_is_when_its_last_user_left() -> None:
    other = list(range(100, 119))
    for num_slots in (8, 10):
        pages = Pages(30)
        first = pages.compressed(num_slots)
        pages.cache.release(pages.compressed(num_slots, other), other)
        pages.cache.release(first, PREFIX)
        num_kept = -(-num_slots // SIZE)
        pages.computed([99] * SIZE * (30 - 2 * num_kept + 1))
        assert (pages.find() is not None, pages.find(other)) == (True, None)


def test_its_last_page_may_go_while_others_are_used_which_are_their_users_own_then() -> None:
    pages = Pages(9)
    first, second = pages.compressed(10), pages.begun()
    assert pages.counts == (0, 2, 2, 5)
    pages.cache.release(second, PREFIX)
    pages.computed([99] * SIZE * 6)
    assert pages.find() is None
    assert pages.counts == (0, 1, 8, 0)
    pages.cache.release(first, PREFIX)
    assert pages.counts == (3, 0, 6, 0)


def test_what_may_be_wrong_is_found_no_more() -> None:
    for num_slots in (8, 10):
        pages = Pages(30)
        first, second = pages.compressed(num_slots), pages.begun()
        pages.cache.release(second, PREFIX, keep=False)
        assert pages.find() is None
        assert pages.counts[2] == 2, "who uses it goes on"
        pages.cache.release(first, PREFIX)
        assert pages.counts == (30 - 5, 0, 0, 5)


def test_a_reset_leaves_what_is_used() -> None:
    pages = Pages(30)
    first = pages.compressed(8)
    pages.cache.reset()
    assert pages.find() is not None
    assert pages.counts == (28, 0, 2, 0)
    pages.cache.release(first, PREFIX)
    assert pages.cache.reset() == 2
    assert pages.counts == (30, 0, 0, 0)


def test_whoever_begins_with_it_shares_nothing_that_it_writes() -> None:
    pages = Pages(30)
    pages.cache.release(pages.compressed(10), PREFIX)
    sequence, tokens = pages.begun(), [*PREFIX, *range(50, 60)]
    assert pages.cache.reserve(sequence, 10)
    pages.cache.commit(sequence, tokens, len(tokens))
    pages.cache.release(sequence, tokens)
    assert pages.cache.match(Namespace(), tokens, len(tokens)).num_tokens == len(PREFIX)
    assert pages.counts == (30 - 8, 0, 0, 8)
