"""How fast requests of a tenant are taken, on a clock that stands where it is put."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from pagoda.server.entrance import pace as pace_module
from pagoda.server.entrance.pace import BURST_SECONDS, NBYTES_PER_SECOND, PRESENT_SECONDS, REQUEST_NBYTES, Pace


class Clock:
    """Of the pace alone: other tests have servers that go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.waited: list[float] = []
        loop = SimpleNamespace(time=lambda: self.now)
        fake = SimpleNamespace(sleep=self.sleep, get_running_loop=lambda: loop)
        monkeypatch.setattr(pace_module, "asyncio", fake)

    async def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)

    def run(self, send: Callable[[Pace], Awaitable[None]]) -> list[float]:
        async def main() -> None:
            await send(Pace())

        asyncio.run(main())
        return self.waited


def test_a_tenant_that_sends_much_waits_and_the_other_does_not(monkeypatch):
    async def send(pace: Pace) -> None:
        await pace.keep("b", 1000)
        await pace.keep("a", int(NBYTES_PER_SECOND * BURST_SECONDS))
        await pace.keep("a", NBYTES_PER_SECOND)
        await pace.keep("b", 1000)

    assert Clock(monkeypatch).run(send) == [pytest.approx(1.0)]


def test_requests_count_whatever_they_have(monkeypatch):
    async def send(pace: Pace) -> None:
        await pace.start("b")
        for _ in range(NBYTES_PER_SECOND // REQUEST_NBYTES + 1):
            await pace.start("a")

    assert Clock(monkeypatch).run(send) == [pytest.approx(REQUEST_NBYTES / NBYTES_PER_SECOND)]


def test_a_tenant_that_is_alone_does_not_wait(monkeypatch):
    clock = Clock(monkeypatch)

    async def send(pace: Pace) -> None:
        await pace.start("b")
        clock.now += PRESENT_SECONDS + 1
        for _ in range(10):
            await pace.keep("a", NBYTES_PER_SECOND)
        await pace.start("b")
        await pace.keep("a", NBYTES_PER_SECOND)

    assert clock.run(send) == [pytest.approx(1.0)], "what it had while it was alone is no debt"
