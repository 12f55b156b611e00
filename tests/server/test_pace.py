"""How fast bodies of a tenant are read, on a clock that stands where it is put."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from pagoda.server import pace as pace_module
from pagoda.server.pace import BURST_SECONDS, NBYTES_PER_SECOND, Pace


def test_a_tenant_that_sends_much_waits_and_the_other_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async def send() -> None:
        pace = Pace()
        await pace.keep("a", int(NBYTES_PER_SECOND * BURST_SECONDS))
        assert waited == []
        await pace.keep("a", NBYTES_PER_SECOND)
        await pace.keep("b", 1000)

    clock = SimpleNamespace(time=lambda: 100.0)
    # Of this module alone: other tests have servers that go on.
    monkeypatch.setattr(pace_module, "asyncio", SimpleNamespace(sleep=sleep, get_running_loop=lambda: clock))
    asyncio.run(send())
    assert waited == [pytest.approx(1.0)]
