"""Bounds all connections of a server: how many there may be, whose they are, and which of them end.

Every connection costs a descriptor and some memory before anybody has shown a key. So there are as many as there is
room for, some of which are kept for clients that are still to say who they are; of these the oldest goes when a new one
comes. Knows tenants and times; how a connection is read is its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Protocol

from pagoda.errors import HttpError
from pagoda.server.ground.options import ServerOptions
from pagoda.server.ground.tenants import Tenant
from pagoda.server.watched.logs import Seldom

logger = logging.getLogger(__name__)

CHECK_SECONDS = 0.25
NEWCOMER_SHARE = 1 / 8  # of all connections, is for those that nobody has been let in on


class Known(Protocol):
    """What is known here of a connection."""

    def check(self, now: float) -> None:
        """End it if its client has let time pass."""

    def end(self) -> None:
        """Close it at once."""


class Connections:
    """Holds at most `most` connections at a time. Used on the event loop's thread only."""

    def __init__(self, options: ServerOptions, most: int, has_tenants: bool) -> None:
        self.receive_seconds = options.receive_timeout_seconds
        self.send_seconds = options.send_timeout_seconds
        self._most = most
        self._most_let_in = most - max(1, int(most * NEWCOMER_SHARE))
        self._has_tenants = has_tenants
        self._all: dict[Known, None] = {}  # those first that nobody has been let in on for longest
        self._let_in: dict[Known, str] = {}  # whose request is in flight on it, the first let in first
        self._seldom = Seldom(logger)
        self._next_check: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: Known) -> None:
        self._all[connection] = None
        if len(self._all) > self._most:
            self.note(f"there are more than {self._most}, and it had waited longest for a request")
            self._end(next((each for each in self._all if each not in self._let_in), connection))
        if self._next_check is None:
            self._next_check = asyncio.get_running_loop().call_later(CHECK_SECONDS, self._check)

    def remove(self, connection: Known) -> None:
        self._all.pop(connection, None)
        self._let_in.pop(connection, None)

    def let_in(self, connection: Known, tenant: Tenant) -> None:
        """A request of `tenant` has come. If there is no room, the tenant that has most makes it.

        Raises HttpError 503 if that is this one.
        """
        if len(self._let_in) >= self._most_let_in:
            self._make_room(tenant.name)
        self._let_in[connection] = tenant.name

    def let_out(self, connection: Known) -> None:
        """The request has been answered."""
        if self._let_in.pop(connection, None) is not None and connection in self._all:
            del self._all[connection]
            self._all[connection] = None

    def abort(self) -> None:
        """End what is left."""
        if self._all:
            logger.warning("%d connections did not end in time and are cut.", len(self._all))
        for each in list(self._all):
            self._end(each)

    def note(self, why: str) -> None:
        """Log why a connection is ended, if that is not done all the time."""
        self._seldom.warning(f"A connection is ended: {why}.")

    def _make_room(self, name: str) -> None:
        counts = Counter(self._let_in.values())
        largest, count = counts.most_common(1)[0]
        if not self._has_tenants or count <= counts[name] + 1:
            self.note(f"tenant {name!r} has {counts[name]} others, and there is no room for more")
            raise HttpError(503, "There are too many connections; try later.", code="overloaded", retry_after_seconds=1)
        self.note(f"tenant {largest!r} has {count}, and tenant {name!r} needs one")
        self._end(next(each for each in reversed(self._let_in) if self._let_in[each] == largest))

    def _check(self) -> None:
        events = asyncio.get_running_loop()
        now = events.time()
        for each in list(self._all):
            each.check(now)
        self._next_check = events.call_later(CHECK_SECONDS, self._check) if self._all else None

    def _end(self, connection: Known) -> None:
        self.remove(connection)
        connection.end()
