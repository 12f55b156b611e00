"""Reads what clients send on threads of its own, so that the event loop never waits for it.

Each tenant's work is done one after the other, and tenants take turns: however much one of them sends, it takes one
thread and a turn, and beside others a part of a processor. Knows no HTTP and no engine; whoever hands work in says
whose it is.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from time import monotonic, thread_time
from typing import Any, TypeVar

from pagoda.confined.process import seconds_in_children
from pagoda.errors import EngineClosedError

Result = TypeVar("Result")

CLOSED_MESSAGE = "The server is shutting down, and reads nothing more."
REST_FACTOR = 5.0  # a tenant's work takes a sixth of a processor's time, here or in children
PRESENT_SECONDS = 10.0  # after its last work a tenant counts as one of several
STUCK_SECONDS = 10.0  # what is read within them is long, and what is not will hardly ever be


class _Job:
    """A call, and where its result goes."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.future: Future[Any] = Future()
        self.begun = 0.0
        self._function = function

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():  # whoever asked has gone
            return
        with suppress(InvalidStateError):  # nobody was to wait any longer
            try:
                self.future.set_result(self._function())
            except BaseException as error:
                self.future.set_exception(error)

    def refuse(self) -> None:
        """Let nobody wait for it any longer."""
        with suppress(InvalidStateError):
            self.future.set_exception(EngineClosedError(CLOSED_MESSAGE))


class Reader:
    """Reads on `num_threads` threads, which end with the process whatever they do: one that hangs holds up no exit."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._changed = threading.Condition()  # guards all below
        self._waiting: OrderedDict[str, deque[_Job]] = OrderedDict()  # the tenant first whose turn it is
        self._running: dict[str, _Job] = {}
        self._seen: dict[str, float] = {}  # when each tenant had work last
        self._rests_until: dict[str, float] = {}
        self._is_closed = False
        for number in range(num_threads):
            threading.Thread(target=self._work, name=f"pagoda-reader-{number}", daemon=True).start()

    async def run(self, tenant: str, function: Callable[[], Result]) -> Result:
        """The result of `function`, called in a thread when it is its turn. Raises EngineClosedError."""
        job = _Job(function)
        with self._changed:
            if self._is_closed:
                raise EngineClosedError(CLOSED_MESSAGE)
            self._waiting.setdefault(tenant, deque()).append(job)
            self._changed.notify()
        result: Result = await asyncio.wrap_future(job.future)
        return result

    @property
    def num_waiting(self) -> int:
        """Calls that have not been taken up."""
        with self._changed:
            return sum(map(len, self._waiting.values()))

    @property
    def stuck_seconds(self) -> float:
        """How long no thread has come back while work waits; 0 unless that is longer than work takes."""
        with self._changed:
            if not self._waiting or len(self._running) < self._num_threads:
                return 0.0
            seconds = monotonic() - max(job.begun for job in self._running.values())
        return seconds if seconds > STUCK_SECONDS else 0.0

    def close(self) -> list[str]:
        """Take up nothing more, and let nobody wait; the tenants whose work goes on."""
        with self._changed:
            self._is_closed = True
            left = [*self._running.values(), *(job for jobs in self._waiting.values() for job in jobs)]
            self._waiting.clear()
            self._changed.notify_all()
            busy = list(self._running)
        for job in left:
            job.refuse()
        return busy

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            tenant, job = taken
            begun = _processor_seconds()
            job.run()
            self._finish(tenant, _processor_seconds() - begun)

    def _finish(self, tenant: str, seconds: float) -> None:
        """A tenant's work took so many seconds of processors: now others have their turn, if there are any."""
        now = monotonic()
        with self._changed:
            del self._running[tenant]
            self._seen[tenant] = now
            if any(now - seen < PRESENT_SECONDS for other, seen in self._seen.items() if other != tenant):
                self._rests_until[tenant] = now + REST_FACTOR * seconds
            self._changed.notify_all()

    def _take(self) -> tuple[str, _Job] | None:
        """The work whose turn it is, when there is some; None once all is closed."""
        with self._changed:
            while (tenant := self._next_tenant()) is None:
                if self._is_closed:
                    return None
                self._changed.wait(self._shortest_rest())
            jobs = self._waiting[tenant]
            job = jobs.popleft()
            if jobs:
                self._waiting.move_to_end(tenant)
            else:
                del self._waiting[tenant]
            job.begun = monotonic()
            self._running[tenant] = job
            return tenant, job

    def _next_tenant(self) -> str | None:
        now = monotonic()
        rested = (tenant for tenant in self._waiting if self._rests_until.get(tenant, 0.0) <= now)
        return next((tenant for tenant in rested if tenant not in self._running), None)

    def _shortest_rest(self) -> float | None:
        """Until one of those that have work may go on, None if all that do are at work."""
        now = monotonic()
        rests = [until - now for each in self._waiting if (until := self._rests_until.get(each, 0.0)) > now]
        return min(rests, default=None)


def _processor_seconds() -> float:
    """Of this thread, and of the children that it has asked."""
    return thread_time() + seconds_in_children()
