"""The parts of a folder of pages: its own, and within it one for each tenant that had reserved a share of it.

Each part is a folder with a log of its own. Does not know who has a share now.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from pagoda.cache.tiers.disk.folder import OVERHEAD_NBYTES, VERSION_FILE, Folder
from pagoda.errors import TierError

logger = logging.getLogger(__name__)

_PARTS = "tenants"
# What others than those who have shares may take of what all without a share have.
_MOST_LEFT_SHARE = 0.5


def part_of(path: Path, tenant: bytes) -> Path:
    """Where the part of a tenant lies, by its digest (`Label.tenant`)."""
    return path / _PARTS / tenant.hex()


def parts(path: Path) -> list[Path]:
    """All that there are, `path` first."""
    return [path, *sorted(each.parent for each in (path / _PARTS).glob(f"*/{VERSION_FILE}"))]


def make_room(path: Path, tenants: Collection[bytes], limit_nbytes: int) -> int:
    """How many bytes parts keep that are not of `tenants`, after the largest were emptied: at most half of the limit.

    What another process writes to stays. Raises OSError.
    """
    own = {part_of(path, tenant) for tenant in tenants}
    left = {each: _nbytes(each) for each in parts(path)[1:] if each not in own}
    for each in sorted(left, key=lambda each: -left[each]):
        if sum(left.values()) > limit_nbytes * _MOST_LEFT_SHARE:
            _empty(each)
            left[each] = _nbytes(each)
    return sum(left.values())


def _nbytes(part: Path) -> int:
    return OVERHEAD_NBYTES + sum(each.stat().st_size for each in part.glob("segment-*.log"))


def _empty(part: Path) -> None:
    try:
        folder = Folder.existing(part)
    except TierError as error:  # of another version
        logger.warning("%s", error)
        return
    if not folder.lock():
        return
    try:
        for number in folder.segments():
            folder.remove(number)
    finally:
        folder.unlock()
    logger.warning("The pages of a tenant that has no page_quota now were removed from %s", part)
