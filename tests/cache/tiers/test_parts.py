"""How records are cut: no byte is lost, and little is wasted."""

from hypothesis import example, given
from hypothesis import strategies as st

from pagoda.cache.tiers.parts import LEAST_CUT_NBYTES, MOST_WASTE, allocated_nbytes, first_part_nbytes


def test_sizes_are_those_of_the_allocator():
    assert [allocated_nbytes(size - 64) for size in (1024, 1025, 1281, 1537, 1793)] == [1024, 1280, 1536, 1792, 2048]


@given(st.integers(1, 1 << 30))
@example(1 << 20)
@example((1 << 20) + 156)
@example((1 << 20) * 5 // 4)
def test_parts_are_the_record_and_waste_little(nbytes):
    first = first_part_nbytes(nbytes)
    assert 0 < first <= nbytes
    taken = allocated_nbytes(first) + (allocated_nbytes(nbytes - first) if first < nbytes else 0)
    assert first == nbytes or first > nbytes - first
    if nbytes >= LEAST_CUT_NBYTES:
        assert taken - nbytes <= MOST_WASTE * nbytes
