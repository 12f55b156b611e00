"""Which pages go to tiers that outlive the process, and when: by policy, and by which pages came back of late.

Host memory takes all that leaves the pool; disks wear and are small, and stores are shared.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import StrEnum

# Remembered pages take some 200 bytes each.
MOST_REMEMBERED = 1 << 17
# If no more than this share of the pages that left came back, a disk is too small for all of them to be worth writing.
WORTH_SHARE = 0.1
# The share must be clearly above or below, so that the answer does not waver.
MARGIN = 0.1


class WritePolicy(StrEnum):
    """When a page is written to tiers that outlive the process."""

    SEAL = "seal"  # as soon as it is full, so that nothing is lost with the process
    EVICT = "evict"  # when it leaves the pool
    SECOND_HIT = "second-hit"  # when it leaves the pool, and another prompt had begun with it, or it had left before
    AUTO = "auto"  # as SEAL while pages that left come back often enough, else as SECOND_HIT


class Departed:
    """The last pages that left the pool, as many as tiers of `most_nbytes` hold, and the share that came back.

    A page that leaves again while it is remembered keeps its place.
    """

    def __init__(self, most_nbytes: int | None) -> None:
        self._most_nbytes = most_nbytes
        self._nbytes = 0
        self._pages: OrderedDict[bytes, tuple[int, bool]] = OrderedDict()
        self._num_forgotten = 0
        self._share = 1.0
        self.is_worth_all = True

    def leaves(self, key: bytes, nbytes: int) -> bool:
        """A page of so many bytes leaves the pool; whether it is remembered to have left before."""
        if key in self._pages:
            return True
        self._pages[key] = (nbytes, False)
        self._nbytes += nbytes
        while self._is_full():
            self._forget_oldest()
        return False

    def comes(self, key: bytes) -> None:
        """A page is in the pool again."""
        if key in self._pages:
            self._pages[key] = (self._pages[key][0], True)

    def _is_full(self) -> bool:
        is_beyond = self._most_nbytes is not None and self._nbytes > self._most_nbytes
        return len(self._pages) > MOST_REMEMBERED or is_beyond

    def _forget_oldest(self) -> None:
        """It had its time: it came back, or did not."""
        _, (nbytes, came_back) = self._pages.popitem(last=False)
        self._nbytes -= nbytes
        self._num_forgotten += 1
        horizon = min(self._num_forgotten, max(len(self._pages) // 2, 1))
        self._share += (came_back - self._share) / horizon
        bound = WORTH_SHARE * (1 - MARGIN if self.is_worth_all else 1 + MARGIN)
        self.is_worth_all = self._share >= bound


class Admission:
    """Answers for pages by `policy`, below a pool whose tiers hold `most_nbytes` (None: nobody says)."""

    def __init__(self, policy: WritePolicy, most_nbytes: int | None) -> None:
        self._policy = policy
        self._departed = Departed(most_nbytes)
        self.remembers = policy in (WritePolicy.SECOND_HIT, WritePolicy.AUTO)

    @property
    def takes_all(self) -> bool:
        """Whether all that leaves the pool is written, though nobody has come back to it."""
        return self._policy is not WritePolicy.SECOND_HIT and self._departed.is_worth_all

    @property
    def takes_sealed(self) -> bool:
        """Whether pages are written as soon as they are full."""
        return self._policy is not WritePolicy.EVICT and self.takes_all

    def comes(self, key: bytes) -> None:
        """A page has come into the pool. To be told where it `remembers`."""
        self._departed.comes(key)

    def leaves(self, key: bytes, nbytes: int) -> bool:
        """A page leaves the pool: whether it is to be written, though nobody has begun with it there."""
        left_before = self._departed.leaves(key, nbytes)
        return self.takes_all or left_before
