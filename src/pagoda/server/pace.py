"""How fast the bodies of each tenant are read: to receive them is work of the event loop, which all tenants share."""

from __future__ import annotations

import asyncio

NBYTES_PER_SECOND = 16 << 20
BURST_SECONDS = 1.0  # whose bytes may come at once


class Pace:
    """Of each tenant; used on the event loop's thread only."""

    def __init__(self) -> None:
        self._free: dict[str, float] = {}  # when each has used up what it was given until then

    async def keep(self, tenant: str, nbytes: int) -> None:
        """So many bytes have come: wait until they may have."""
        now = asyncio.get_running_loop().time()
        free = max(self._free.get(tenant, 0.0), now - BURST_SECONDS) + nbytes / NBYTES_PER_SECOND
        self._free[tenant] = free
        if free > now:
            await asyncio.sleep(free - now)
