"""The page allocator: states, reference counts, and that broken counts are noticed."""

import pytest

from pagoda.cache.holdings.allocator import PageAllocator, PageCounts
from pagoda.errors import IntegrityError


@pytest.fixture
def allocator():
    return PageAllocator(3)


def test_all_pages_start_free(allocator):
    assert allocator.counts == PageCounts(total=3, free=3, open=0, in_use=0, idle=0)


def test_an_allocated_page_is_open(allocator):
    allocator.allocate(1)
    assert allocator.counts == PageCounts(total=3, free=2, open=1, in_use=0, idle=0)


def test_a_sealed_page_is_in_use_until_its_last_user_leaves(allocator):
    [page] = allocator.allocate(1)
    allocator.seal(page)
    allocator.retain(page)
    assert not allocator.release(page)
    assert allocator.counts == PageCounts(total=3, free=2, open=0, in_use=1, idle=0)
    assert allocator.release(page)
    assert allocator.counts == PageCounts(total=3, free=2, open=0, in_use=0, idle=1)


def test_an_open_page_without_users_is_free(allocator):
    assert allocator.release(*allocator.allocate(1))
    assert allocator.counts.free == 3


def test_an_idle_page_can_be_used_again(allocator):
    [page] = allocator.allocate(1)
    allocator.seal(page)
    allocator.release(page)
    allocator.retain(page)
    assert allocator.counts == PageCounts(total=3, free=2, open=0, in_use=1, idle=0)


def test_free_and_idle_pages_are_available(allocator):
    [idle] = allocator.allocate(1)
    allocator.seal(idle)
    allocator.release(idle)
    allocator.allocate(1)
    assert allocator.num_available == allocator.counts.available == 2


def test_integrity_compares_users(allocator):
    [page] = allocator.allocate(1)
    users = [0, 0, 0]
    with pytest.raises(IntegrityError, match=f"Page {page} counts 1 users but 0"):
        allocator.check_integrity(users)
    users[page] = 1
    allocator.check_integrity(users)


def test_integrity_finds_a_lost_page(allocator):
    allocator._free.pop()
    with pytest.raises(IntegrityError, match=r"Pages \(free, open, idle\)"):
        allocator.check_integrity([0, 0, 0])


def test_integrity_finds_an_open_page_that_nobody_writes(allocator):
    [page] = allocator.allocate(1)
    allocator._references[page] = 0
    with pytest.raises(IntegrityError, match=f"Page {page} is open"):
        allocator.check_integrity([0, 0, 0])
