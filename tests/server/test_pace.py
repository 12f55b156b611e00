"""How fast bodies of a tenant are read, on a clock that stands where it is put."""

from __future__ import annotations

import asyncio

import pytest

from pagoda.server.pace import BURST_SECONDS, NBYTES_PER_SECOND, Pace


def test_a_tenant_that_sends_much_waits_and_the_other_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async def send() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 100.0, raising=False)
        pace = Pace()
        await pace.keep("a", int(NBYTES_PER_SECOND * BURST_SECONDS))
        assert waited == []
        await pace.keep("a", NBYTES_PER_SECOND)
        await pace.keep("b", 1000)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(send())
    assert waited == [pytest.approx(1.0)]
