"""Pinned memory: who has which of it, what comes back, and what becomes of what the system refuses."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_device import FakePinning
from pagoda.cache.transfers.pinned import PinnedMemory, slab_nbytes

SLAB = 1 << 16


def span(array: Any) -> tuple[int, int]:
    start = array.__array_interface__["data"][0]
    return start, start + array.nbytes


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 3 * SLAB), st.just(-1), st.just(-2)), max_size=60))
def test_nobody_has_the_memory_of_another(sizes: list[int]) -> None:
    """Each array keeps what was written to it, while others come and go."""
    pinning = FakePinning()
    memory, held = PinnedMemory(pinning, SLAB), list[tuple[int, Any]]()
    for number, size in enumerate(sizes):
        if size >= 0:
            held.append((number % 251, memory.take(size)))
            held[-1][1][:] = number % 251
        elif held:
            del held[0 if size == -1 else -1]
        assert all((array == value).all() for value, array in held)
        assert all(memory.holds(array) for _, array in held)
        assert memory.nbytes == sum(pinning.pinned.values())
    held.clear()
    assert memory.nbytes <= SLAB


def test_views_keep_their_memory() -> None:
    """A record is looked at through views of views of what was given."""
    memory = PinnedMemory(FakePinning(), SLAB)
    array = memory.take(1000)
    array[:] = 7
    view = memoryview(array[100:].data)[100:]
    body = np.frombuffer(view[10:], np.uint8)[10:]
    del array, view
    others = [memory.take(1000) for _ in range(SLAB // 1000)]
    for other in others:
        other[:] = 9
    assert (body == 7).all()
    (start, _), others_at = span(body), [span(each) for each in others]
    assert not any(first <= start < last for first, last in others_at)


def test_memory_comes_back_and_slabs_go() -> None:
    pinning = FakePinning()
    memory = PinnedMemory(pinning, SLAB)
    memory.reserve(2 * SLAB)
    assert len(pinning.pinned) == 2
    arrays = [memory.take(SLAB // 4) for _ in range(40)]
    assert len(pinning.pinned) == 10
    large = memory.take(5 * SLAB)
    assert max(pinning.pinned.values()) >= large.nbytes
    del arrays, large
    assert len(pinning.pinned) == 3, "those that were reserved, and one beside"
    del memory
    assert not pinning.pinned


def test_tails_share_slabs_with_pages() -> None:
    pinning = FakePinning()
    memory = PinnedMemory(pinning, 64 << 20)
    arrays = [memory.take((1 << 20) + 200 + 4 * tokens) for tokens in range(1, 17)]
    assert len(pinning.pinned) == 1
    assert len({span(each)[0] for each in arrays}) == len(arrays)


@pytest.mark.parametrize(("host_mib", "expected_mib"), [(0, 64), (100, 64), (2048, 128), (1 << 16, 256)])
def test_slabs_are_larger_where_more_is_pinned(host_mib: int, expected_mib: int) -> None:
    assert slab_nbytes(host_mib << 20) == expected_mib << 20


def test_what_the_system_refuses_lies_elsewhere_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    memory = PinnedMemory(FakePinning(most_nbytes=SLAB), SLAB)
    with caplog.at_level(logging.WARNING):
        arrays = [memory.take(SLAB // 2) for _ in range(4)]
    assert [memory.holds(each) for each in arrays] == [True, True, False, False]
    assert caplog.text.count("No more host memory can be pinned") == 1
    with pytest.raises(OSError, match="too much is pinned"):
        memory.reserve(SLAB)
    del arrays
    assert memory.holds(memory.take(SLAB // 2))
