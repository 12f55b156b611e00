"""One layer group: what is shared, copied, merged, kept and evicted, page by page."""

from itertools import pairwise

import pytest

from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.base import PageActions
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.holdings.allocator import PageCounts
from pagoda.cache.prefix.held import Reason
from pagoda.cache.prefix.keys import token_key
from pagoda.errors import IntegrityError, OutOfPagesError

PAGE_TOKENS = 4


class ParentsFirst(EvictionPolicy):
    """The worst there is: it would take the beginning of every sequence first."""

    def priority(self, node):
        return 0 if node.parent is None else 1 + self.priority(node.parent)


def make_group(num_pages=16, share=True, policy=None):
    return PageGroup(num_pages, PAGE_TOKENS, policy or LRU(), KeepAll(), share)


@pytest.fixture
def group():
    return make_group()


def held(group, tokens, namespace=""):
    """How many leading tokens the group holds."""
    return group.match(namespace, token_key(tokens)).num_tokens


def start(group, tokens, num_hit=0, namespace=""):
    """A table that takes over `num_hit` tokens and computes the others."""
    table, _ = group.attach(namespace, group.match(namespace, token_key(tokens)), num_hit)
    grow(group, table, tokens)
    return table


def grow(group, table, tokens):
    group.reserve(table, len(tokens) - table.num_tokens)
    group.commit(table, tokens, len(tokens))


def cache(group, tokens, namespace=""):
    """Compute a sequence and let it end."""
    group.release(start(group, tokens, namespace=namespace), tokens)


class TestSharing:
    def test_a_full_page_is_hittable_while_its_writer_runs(self, group):
        start(group, [0, 1, 2, 3, 4])
        assert held(group, [0, 1, 2, 3, 4]) == PAGE_TOKENS

    def test_an_open_page_is_not_hittable(self, group):
        start(group, [0, 1, 2])
        assert held(group, [0, 1, 2]) == 0

    def test_whole_pages_of_a_hit_are_the_same_pages(self, group):
        first = start(group, range(8))
        second, actions = group.attach("", group.match("", token_key(range(8))), 8)
        assert second.pages == first.pages
        assert actions == PageActions([], [])

    def test_a_hit_inside_a_page_copies_it(self, group):
        first = start(group, range(8))
        second, actions = group.attach("", group.match("", token_key(range(8))), 6)
        assert second.pages[0] == first.pages[0]
        assert actions == PageActions([second.pages[1]], [(first.pages[1], second.pages[1])])
        assert second.num_tokens == 6

    def test_two_writers_of_one_page_end_with_one_page(self, group):
        first, second = start(group, [0]), start(group, [0])
        grow(group, first, range(PAGE_TOKENS))
        assert group.holdings.counts == PageCounts(total=16, free=14, open=1, in_use=1, idle=0)
        grow(group, second, range(PAGE_TOKENS))
        assert group.holdings.counts == PageCounts(total=16, free=15, open=0, in_use=1, idle=0)
        assert first.pages == second.pages

    def test_namespaces_do_not_share(self, group):
        cache(group, range(8), namespace="a")
        assert held(group, range(8), namespace="b") == 0

    def test_without_sharing_nothing_is_held(self):
        group = make_group(share=False)
        table = start(group, range(8))
        assert held(group, range(8)) == 0
        group.release(table, range(8))
        assert group.holdings.counts.free == group.holdings.counts.total


class TestTails:
    def test_the_tail_of_an_ended_sequence_is_hittable(self, group):
        cache(group, range(6))
        assert held(group, range(8)) == 6

    def test_a_tail_of_which_not_all_is_written_is_held_as_far_as_it_is(self, group):
        table = start(group, range(6))
        group.reserve(table, 1)
        group.release(table, range(7))
        assert held(group, range(7)) == 6

    def test_a_tail_that_the_tree_holds_already_is_freed(self, group):
        cache(group, range(8))
        cache(group, range(6))
        assert group.holdings.counts.idle == 2

    @pytest.mark.parametrize("longer", [range(7), range(8)])
    def test_a_longer_page_takes_the_place_of_a_tail(self, group, longer):
        cache(group, range(6))
        cache(group, longer)
        assert group.holdings.counts.idle == 2
        assert held(group, range(8)) == len(longer)

    def test_tails_that_differ_stand_side_by_side(self, group):
        cache(group, [0, 1, 2])
        cache(group, [0, 1, 9])
        assert (held(group, [0, 1, 2]), held(group, [0, 1, 9])) == (3, 3)

    def test_a_sequence_released_without_tokens_leaves_whole_pages_only(self, group):
        group.release(start(group, range(6)))
        assert held(group, range(6)) == PAGE_TOKENS


class TestFork:
    def test_a_fork_shares_every_page(self, group):
        table = start(group, range(6))
        assert group.fork(table).pages == table.pages
        assert group.holdings.counts == PageCounts(total=16, free=14, open=1, in_use=1, idle=0)

    def test_the_first_to_write_copies_the_open_page_and_the_last_keeps_it(self, group):
        table = start(group, range(6))
        twin = group.fork(table)
        old = table.pages[1]
        actions = group.reserve(twin, 1)
        assert actions == PageActions([twin.pages[1]], [(old, twin.pages[1])])
        assert group.reserve(table, 1) == PageActions([], [])
        assert table.pages[1] == old != twin.pages[1]

    def test_a_fork_at_a_page_boundary_copies_nothing(self, group):
        twin = group.fork(start(group, range(8)))
        assert group.reserve(twin, 1).copies == []

    def test_a_fork_does_not_share_pages_reserved_but_not_written(self, group):
        table = start(group, range(4))
        group.reserve(table, 1)
        twin = group.fork(table)
        group.reserve(twin, 1)
        assert twin.pages[1] != table.pages[1]

    def test_the_last_of_a_fork_keeps_the_shared_tail(self, group):
        table = start(group, range(6))
        twin = group.fork(table)
        group.release(table, range(6))
        assert group.holdings.counts == PageCounts(total=16, free=14, open=1, in_use=1, idle=0)
        group.release(twin, range(6))
        assert held(group, range(6)) == 6


class TestReserve:
    def test_pages_reserved_before_are_used_first(self, group):
        table = start(group, range(4))
        group.reserve(table, 9)
        assert group.reserve_cost(table, 1) == 0
        assert group.reserve(table, 1) == PageActions([], [])

    def test_reserving_too_much_changes_nothing(self):
        group = make_group(num_pages=3)
        cache(group, range(4))
        table = start(group, [9])
        before = (group.holdings.counts, list(table.pages), held(group, range(4)))
        with pytest.raises(OutOfPagesError, match="3 pages are needed and 2 can be had"):
            group.reserve(table, 3 * PAGE_TOKENS)
        assert (group.holdings.counts, list(table.pages), held(group, range(4))) == before

    def test_attaching_without_a_page_for_the_copy_changes_nothing(self):
        group = make_group(num_pages=2)
        cache(group, range(8))
        match = group.match("", token_key(range(8)))
        before = group.holdings.counts
        with pytest.raises(OutOfPagesError):
            group.attach("", match, 6)
        assert group.holdings.counts == before
        assert held(group, range(8)) == 8

    def test_the_source_of_a_copy_is_not_evicted_for_it(self):
        group = make_group(num_pages=2)
        source, other = range(4), [9, 9, 9, 9]
        cache(group, source)
        cache(group, other)
        group.attach("", group.match("", token_key(source)), 3)
        assert (held(group, source), held(group, other)) == (4, 0)


class TestEviction:
    def test_the_least_recently_released_goes_first(self):
        group = make_group(num_pages=3)
        prompts = [[token] * PAGE_TOKENS for token in range(4)]
        for prompt in prompts:
            cache(group, prompt)
        assert [held(group, prompt) for prompt in prompts] == [0, 4, 4, 4]

    def test_a_hit_renews(self):
        group = make_group(num_pages=2)
        old, new, other = ([token] * PAGE_TOKENS for token in range(3))
        cache(group, old)
        cache(group, new)
        group.release(start(group, old, num_hit=PAGE_TOKENS), old)
        cache(group, other)
        assert (held(group, old), held(group, new), held(group, other)) == (4, 0, 4)

    def test_a_page_copied_from_is_renewed(self):
        group = make_group(num_pages=3)
        old, new = [0] * PAGE_TOKENS, [1] * PAGE_TOKENS
        cache(group, old)
        cache(group, new)
        group.release(start(group, [0, 0, 9], num_hit=2), [0, 0, 9])
        start(group, [7])
        assert (held(group, old), held(group, new)) == (4, 0)

    def test_a_sequence_is_evicted_from_its_end(self):
        group = make_group(num_pages=4)
        cache(group, range(16))
        lengths = []
        for token in range(100, 104):
            start(group, [token])
            lengths.append(held(group, range(16)))
        assert lengths == [12, 8, 4, 0]

    def test_a_policy_cannot_take_a_page_that_others_continue(self):
        group = make_group(num_pages=4, policy=ParentsFirst())
        cache(group, range(16))
        start(group, [100])
        assert held(group, range(16)) == 12

    def test_pages_in_use_stay(self):
        group = make_group(num_pages=3)
        user = start(group, range(8))
        cache(group, [7, 7, 7, 7])
        cache(group, [8, 8, 8, 8])
        assert held(group, range(8)) == 8
        assert len(user.pages) == 2

    def test_a_parent_can_go_after_its_last_child(self):
        group = make_group(num_pages=3)
        cache(group, range(8))
        sibling = [0, 1, 2, 3, 9, 9, 9, 9]
        group.release(start(group, sibling, num_hit=4), sibling)
        assert group.holdings.counts.idle == 3
        start(group, [7] * 12)
        assert group.holdings.counts == PageCounts(total=3, free=0, open=0, in_use=3, idle=0)
        assert group.holdings.num_evicted(Reason.ROOM) == 3

    def test_reset_forgets_idle_pages_only(self, group):
        start(group, range(4))
        cache(group, [*range(4), 7, 7, 7, 7])
        assert group.holdings.evict_all(Reason.RESET) == 1
        assert held(group, [*range(4), 7, 7, 7, 7]) == 4

    def test_the_list_of_candidates_stays_in_proportion_to_the_pages(self, group):
        cache(group, range(4))
        for _ in range(1000):
            group.release(start(group, range(4), num_hit=4), range(4))
        assert len(group.holdings.accounts.shared.idle) < 100


class TestForgetting:
    def test_pages_in_doubt_are_freed_at_once(self, group):
        group.release(start(group, range(10)), range(10), keep=False)
        assert group.holdings.counts.free == group.holdings.counts.total

    def test_what_others_built_on_pages_in_doubt_goes_too(self, group):
        table = start(group, range(8))
        longer = [*range(8), 9, 9, 9, 9, 8]
        group.release(start(group, longer, num_hit=8), longer)
        group.release(table, range(8), keep=False)
        assert group.holdings.counts.free == group.holdings.counts.total

    def test_pages_in_doubt_that_another_sequence_uses_stay_until_it_ends(self, group):
        first = start(group, range(8))
        second = start(group, range(8), num_hit=8)
        group.release(first, range(8), keep=False)
        assert group.holdings.counts.in_use == 2
        group.release(second, range(8), keep=False)
        assert group.holdings.counts.free == group.holdings.counts.total

    def test_a_namespace_without_pages_is_forgotten(self, group):
        for number in range(100):
            cache(group, range(6), namespace=f"salt {number}")
            held(group, range(6), namespace=f"other salt {number}")
            group.holdings.evict_all(Reason.RESET)
        assert len(group.prefixes.tree._roots) == 0


class TestIntegrity:
    def test_a_page_table_that_nobody_knows_is_noticed(self, group):
        start(group, range(4))
        with pytest.raises(IntegrityError, match="counts 1 users but 0 page tables"):
            group.check_integrity([])

    def test_a_page_missing_from_the_tree_is_noticed(self, group):
        cache(group, range(4))
        group.prefixes.tree.remove(next(group.prefixes.tree.nodes()))
        with pytest.raises(IntegrityError, match="name different pages"):
            group.check_integrity([])

    def test_used_pages_follow_used_pages(self, group):
        table = start(group, range(16))
        group.check_integrity([table])
        path = group.match("", token_key(range(16))).path
        assert all(child.parent is parent for parent, child in pairwise(path))
