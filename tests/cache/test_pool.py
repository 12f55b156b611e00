"""The page pool: what memory it is of."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagoda.cache.pool import PagePool
from pagoda.formats.page import PageGeometry
from pagoda.formats.plain import BF16
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.machine import huge_pages

MAPPINGS = Path("/proc/self/smaps")
HUGE_PAGE, SHARED = "hg", "sh"  # what MADV_HUGEPAGE asks for, and what gets none as systems are set up


def flags_at(address: int) -> set[str]:
    """What the kernel says of the mapping that has this address (proc(5), VmFlags)."""
    is_there = False
    for line in MAPPINGS.read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            start, stop = (int(each, 16) for each in first.split("-"))
            is_there = start <= address < stop
        elif is_there and first == "VmFlags:":
            return set(rest)
    raise AssertionError("there is no mapping at this address")


@pytest.mark.skipif(not MAPPINGS.exists() or huge_pages() is None, reason="the system tells nothing of huge pages")
def test_its_memory_may_be_in_huge_pages() -> None:
    geometry = PageGeometry(LayerGroup(Reach.FULL, None, (AttentionLayout(1, 8, 8),)), BF16, 16)
    pool = PagePool(geometry, num_pages=(4 << 20) // geometry.page_nbytes)
    flags = flags_at(pool.pages.data_ptr())
    assert HUGE_PAGE in flags
    assert SHARED not in flags
