"""The facade over groups: the hit all groups can resume, admission, and pages that are being written."""

import pytest

from pagoda.cache.cache import Cache, NoBytes
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.holdings.allocator import PageCounts
from pagoda.cache.inspector import Inspector
from pagoda.cache.prefix.held import Reason
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.prefix.tree import Node
from pagoda.errors import OutOfPagesError

PAGE_TOKENS = 4


class Every(KeepAll):
    """Layers resume only at every n-th token."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def resumable_tokens(self, num_matched_tokens):
        return num_matched_tokens // self.n * self.n


def make_cache(*num_pages, page_tokens=None, rule=None):
    """A cache with one group per pool size; `rule` is that of the last group."""
    sizes = page_tokens or [PAGE_TOKENS] * len(num_pages)
    rules = [KeepAll()] * (len(num_pages) - 1) + [rule or KeepAll()]
    groups = [PageGroup(pages, size, LRU(), rule) for pages, size, rule in zip(num_pages, sizes, rules, strict=True)]
    return Cache(groups, [NoBytes() for _ in groups])


def match(cache, tokens, namespace=""):
    return cache.match(namespace, tokens, limit=len(tokens))


def run(cache, tokens, num_written=None):
    """A sequence of which `num_written` tokens (all by default) are computed."""
    tokens = list(tokens)
    num_written = len(tokens) if num_written is None else num_written
    sequence = cache.attach(cache.match("", tokens, limit=num_written), len(tokens))
    assert cache.reserve(sequence, num_written - sequence.num_tokens)
    cache.commit(sequence, tokens, num_written)
    return sequence


def store(cache, tokens):
    cache.release(run(cache, tokens), list(tokens))


class TestMatch:
    def test_the_limit_holds(self):
        cache = make_cache(8)
        store(cache, range(8))
        assert cache.match("", range(8), limit=7).num_tokens == 7

    def test_the_shortest_group_decides(self):
        cache = make_cache(8, 8, page_tokens=[4, 6])
        run(cache, range(8))
        # The first group holds two pages of 4, the second one page of 6.
        assert match(cache, range(8)).num_tokens == 6

    def test_every_group_must_be_able_to_resume(self):
        cache = make_cache(8, 8, rule=Every(5))
        store(cache, range(8))
        assert match(cache, range(8)).num_tokens == 5

    def test_whole_pages_end_with_a_page_in_every_group(self):
        cache = make_cache(16, 16, page_tokens=[4, 6])
        store(cache, range(30))
        hit = match(cache, range(29))
        assert (hit.num_tokens, cache.whole_pages(hit).num_tokens) == (29, 24)

    def test_whole_pages_are_resumable_too(self):
        cache = make_cache(16, rule=Every(6))
        store(cache, range(32))
        assert cache.whole_pages(match(cache, range(23))).num_tokens == 12

    def test_matching_changes_nothing(self):
        cache = make_cache(2)
        store(cache, [1] * 4)
        store(cache, [2] * 4)
        match(cache, [1] * 4)
        store(cache, [3] * 4)
        assert match(cache, [1] * 4).num_tokens == 0


class TestAdmission:
    def test_room_is_counted_to_the_page(self):
        cache = make_cache(4)
        assert cache.can_attach(match(cache, range(16)), 16)
        assert not cache.can_attach(match(cache, range(17)), 17)

    def test_running_sequences_can_still_grow(self):
        cache = make_cache(4)
        assert cache.can_attach(match(cache, range(12)), 12, running=[Namespace()])
        assert not cache.can_attach(match(cache, range(12)), 12, running=[Namespace()] * 2)

    def test_every_group_needs_room(self):
        cache = make_cache(4, 3)
        assert not cache.can_attach(match(cache, range(16)), 16)

    def test_pages_in_use_by_others_cost_nothing(self):
        cache = make_cache(3)
        run(cache, range(8))
        assert cache.can_attach(match(cache, range(8)), 4)
        assert not cache.can_attach(match(cache, range(8)), 5)

    def test_a_full_pool_can_serve_its_own_prompt_again(self):
        cache = make_cache(2)
        store(cache, range(8))
        assert cache.can_attach(cache.whole_pages(cache.match("", range(8), limit=7)), 4)

    def test_a_page_to_copy_from_needs_room_beside_its_copy(self):
        cache = make_cache(1)
        store(cache, range(3))
        hit = match(cache, range(3))
        assert not cache.can_attach(hit, 1)
        assert cache.can_attach(cache.whole_pages(hit), 4)

    def test_one_group_without_room_leaves_the_others_as_they_were(self):
        cache = make_cache(3, 2)
        store(cache, range(8))
        store(cache, [9, 9, 9, 9])
        hit = cache.match("", [9, 9, 9, 9], limit=3)
        pinned = run(cache, [9, 9, 9, 9, 8])
        before = Inspector(cache).stats()
        with pytest.raises(OutOfPagesError):
            cache.attach(hit, 4)
        assert Inspector(cache).stats() == before
        cache.release(pinned)
        Inspector(cache).check_integrity()

    def test_reserving_in_one_group_only_never_happens(self):
        cache = make_cache(4, 2)
        sequence = run(cache, range(4))
        before = Inspector(cache).stats()
        assert not cache.reserve(sequence, 8)
        assert Inspector(cache).stats() == before


class TestReservedAhead:
    """Room for the token after those that a step computes."""

    def test_it_takes_free_pages_and_gives_them_back(self):
        cache = make_cache(8, 8)
        one, other = run(cache, range(3)), run(cache, range(10, 18))
        assert cache.reserve(one, 1)
        assert cache.reserve(other, 1)
        assert cache.reserve_ahead([one, other], [1, 1])
        assert [len(each.tables[0].pages) for each in (one, other)] == [2, 3]
        cache.commit(one, [0, 1, 2, 3], 4)
        Inspector(cache).check_integrity()
        cache.give_back(one)
        assert [len(table.pages) for table in one.tables] == [1, 1]
        Inspector(cache).check_integrity()

    def test_nothing_is_evicted_for_it(self):
        cache = make_cache(4)
        store(cache, range(100, 108))
        sequence = run(cache, range(7))
        assert cache.reserve(sequence, 1)
        assert not cache.reserve_ahead([sequence], [1])
        assert cache.match("", list(range(100, 108)), 8).num_tokens == 8
        assert len(sequence.tables[0].pages) == 2

    def test_it_is_for_all_in_every_group_or_for_nobody(self):
        cache = make_cache(8, 5)
        one, other = run(cache, range(8)), run(cache, range(10, 18))
        assert not cache.reserve_ahead([one, other], [0, 0])
        assert [len(table.pages) for each in (one, other) for table in each.tables] == [2, 2, 2, 2]
        assert cache.reserve_ahead([one], [0])

    def test_what_raises_leaves_the_page_that_is_being_written(self, monkeypatch):
        cache = make_cache(8)
        one, other = run(cache, range(8)), run(cache, range(10, 18))
        assert cache.reserve(one, 1)
        assert cache.reserve(other, 4)
        prepared = []

        def prepare(page):
            prepared.append(page)
            if len(prepared) == 1:
                raise RuntimeError("broken")

        monkeypatch.setattr(cache._stores[0], "prepare", prepare)
        with pytest.raises(RuntimeError):
            cache.reserve_ahead([one, other], [1, 4])
        assert [len(each.tables[0].pages) for each in (one, other)] == [3, 3]
        Inspector(cache).check_integrity()


class TestPagesBeingWritten:
    """A waiting prompt and a running one agree on which page both would compute."""

    def test_the_next_page_of_a_waiting_prompt_is_the_one_its_twin_writes(self):
        cache = make_cache(8)
        running = run(cache, range(12), num_written=5)
        assert cache.missing_key(match(cache, range(12)), range(12)) == cache.written_key(running, range(12))

    def test_a_cold_prompt_waits_for_the_first_page(self):
        cache = make_cache(8)
        running = run(cache, range(12), num_written=0)
        assert cache.missing_key(match(cache, range(12)), range(12)) == cache.written_key(running, range(12))

    @pytest.mark.parametrize("other", [[0, 1, 2, 3, 9, 9, 9, 9], [9, 1, 2, 3, 4, 5, 6, 7]])
    def test_other_tokens_are_another_page(self, other):
        cache = make_cache(8)
        running = run(cache, range(8), num_written=5)
        assert cache.missing_key(match(cache, other), other) != cache.written_key(running, range(8))

    def test_another_namespace_is_another_page(self):
        cache = make_cache(8)
        running = run(cache, range(8), num_written=5)
        hit = match(cache, range(8), namespace="salt")
        assert cache.missing_key(hit, range(8)) != cache.written_key(running, range(8))

    def test_a_rest_that_does_not_fill_a_page_stands_for_nothing(self):
        cache = make_cache(8)
        running = run(cache, range(7), num_written=5)
        assert cache.missing_key(match(cache, range(7)), range(7)) is None
        assert cache.written_key(running, range(7)) is None


class TestStats:
    def test_hits_are_counted_in_tokens(self):
        cache = make_cache(8)
        store(cache, range(8))
        cache.attach(cache.match("", range(8), limit=7), 8)
        stats = Inspector(cache).stats()
        assert (stats.hit_tokens, stats.queried_tokens, stats.hit_rate) == (7, 16, 7 / 16)

    def test_shared_pages_count_once(self):
        cache = make_cache(8)
        run(cache, range(8))
        run(cache, range(6))
        # Two pages of the first, and the copy of the second's last two tokens.
        assert (Inspector(cache).stats().tokens_stored, Inspector(cache).stats().token_slots_allocated) == (10, 12)

    def test_an_unused_cache_wastes_nothing(self):
        stats = Inspector(make_cache(8)).stats()
        assert (stats.utilization, stats.hit_rate) == (1.0, 0.0)
        assert stats.groups == (PageCounts(total=8, free=8, open=0, in_use=0, idle=0),)

    def test_reset_says_how_many_pages_it_forgot(self):
        cache = make_cache(8, 8)
        store(cache, range(8))
        assert cache.reset() == 4


class TestWatchers:
    """What a watcher makes of what it hears."""

    class Broken:
        def __init__(self) -> None:
            self.reasons: list[Reason] = []

        def stored(self, node: Node) -> None:
            raise RuntimeError("a watcher of pages that come")

        def removed(self, node: Node, reason: Reason) -> None:
            self.reasons.append(reason)
            raise RuntimeError("a watcher of pages that go")

    def test_one_that_fails_changes_nothing(self, caplog):
        cache, watcher = make_cache(3), self.Broken()
        Inspector(cache).watch(watcher)
        store(cache, range(8))
        store(cache, [9] * 8)
        assert watcher.reasons == [Reason.ROOM]
        assert "A watcher of the cache failed" in caplog.text
        Inspector(cache).check_integrity()
        hit = cache.match("", list(range(8)), limit=7)
        assert hit.num_tokens == 4
        assert cache.attach(hit, 8).num_tokens == 4
        Inspector(cache).check_integrity()

    def test_it_hears_why_a_page_left(self):
        cache, watcher = make_cache(4), self.Broken()
        Inspector(cache).watch(watcher)
        store(cache, range(8))
        cache.reset()
        assert watcher.reasons == [Reason.RESET] * 2
        sequence = run(cache, [1, 2, 3, 4])
        cache.release(sequence, [1, 2, 3, 4], keep=False)
        assert watcher.reasons[2:] == [Reason.DOUBT]
