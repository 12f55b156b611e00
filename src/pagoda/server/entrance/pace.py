"""Slows the requests of each tenant down to a pace: they are work of the event loop, which all tenants share.

A tenant that is alone is not held up. Beside others each may use up so many bytes a second, and a request counts as
some, however small it is.
"""

from __future__ import annotations

import asyncio

NBYTES_PER_SECOND = 8 << 20
REQUEST_NBYTES = 128 << 10
BURST_SECONDS = 1.0  # whose bytes may come at once
PRESENT_SECONDS = 10.0  # that a tenant stays after it has sent anything


class Pace:
    """Keeps the pace of each tenant. Used on the event loop's thread only."""

    def __init__(self) -> None:
        self._free: dict[str, float] = {}  # when each has used up what it was given until then
        self._seen: dict[str, float] = {}

    async def start(self, tenant: str) -> None:
        """A request has come: wait until it may have."""
        await self.keep(tenant, REQUEST_NBYTES)

    async def keep(self, tenant: str, nbytes: int) -> None:
        """So many bytes have come: wait until they may have."""
        now = asyncio.get_running_loop().time()
        self._seen[tenant] = now
        free = max(self._free.get(tenant, 0.0), now - BURST_SECONDS) + nbytes / NBYTES_PER_SECOND
        is_alone = all(now - seen > PRESENT_SECONDS for other, seen in self._seen.items() if other != tenant)
        self._free[tenant] = min(free, now) if is_alone else free
        if not is_alone and free > now:
            await asyncio.sleep(free - now)
