"""Reading prompts: tenants take turns, and one whose work hangs holds up neither the others nor the exit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

import processes
from pagoda.errors import EngineClosedError
from pagoda.server.asked import reader as reader_module
from pagoda.server.asked.reader import Reader
from server.running import MOST_SECONDS, wait_until

HANGS = """
import asyncio, threading
from pagoda.server.asked.reader import Reader

async def main():
    reader, begun = Reader(1), threading.Event()
    def hang():
        begun.set()
        threading.Event().wait()
    task = asyncio.ensure_future(reader.run("alice", hang))
    await asyncio.to_thread(begun.wait)
    print(reader.close())

asyncio.run(main())
"""


@pytest.fixture
def make() -> Iterator[Callable[[int], Reader]]:
    readers: list[Reader] = []

    def new(num_threads: int) -> Reader:
        readers.append(Reader(num_threads))
        return readers[-1]

    yield new
    for reader in readers:
        reader.close()


def test_a_result_or_an_error_comes_back(make: Callable[[int], Reader]) -> None:
    reader = make(1)
    assert asyncio.run(reader.run("a", lambda: 7)) == 7
    with pytest.raises(ZeroDivisionError):
        asyncio.run(reader.run("a", lambda: 1 // 0))


def test_a_tenant_whose_work_took_long_rests_while_there_are_others(
    make: Callable[[int], Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On clocks that stand: only the end of a rest that is no rest lets work go on."""
    now, worked, in_children = 1000.0, 0.0, 0.0
    monkeypatch.setattr(reader_module, "monotonic", lambda: now)
    monkeypatch.setattr(reader_module, "thread_time", lambda: worked)
    monkeypatch.setattr(reader_module, "seconds_in_children", lambda: in_children)
    reader = make(1)

    def take_long() -> None:
        nonlocal worked, in_children
        worked += 2.0
        in_children += 3.0

    asyncio.run(reader.run("other", lambda: None))
    asyncio.run(reader.run("long", take_long))
    assert reader._rests_until["long"] == now + 5.0 * reader_module.REST_FACTOR
    asyncio.run(reader.run("other", lambda: None))

    async def again() -> None:
        await asyncio.wait_for(reader.run("long", lambda: None), 0.2)

    with pytest.raises(TimeoutError):
        asyncio.run(again())
    now += 5.0 * reader_module.REST_FACTOR
    asyncio.run(reader.run("long", lambda: None))


def test_one_tenant_alone_never_rests(make: Callable[[int], Reader]) -> None:
    reader = make(1)
    for _ in range(3):
        asyncio.run(reader.run("a", lambda: sum(range(1000))))
    assert not reader._rests_until


def test_tenants_take_turns(make: Callable[[int], Reader], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "REST_FACTOR", 0.0)  # a rest, however short, may cost one a turn
    reader, goes_on, order = make(1), threading.Event(), list[str]()

    async def main() -> None:
        first = asyncio.ensure_future(reader.run("many", goes_on.wait))
        many = [asyncio.ensure_future(reader.run("many", lambda: order.append("many"))) for _ in range(5)]
        await asyncio.sleep(0)
        few = [asyncio.ensure_future(reader.run("few", lambda: order.append("few"))) for _ in range(2)]
        await asyncio.sleep(0)
        goes_on.set()
        await asyncio.gather(first, *many, *few)

    asyncio.run(main())
    assert order[:4] in (["many", "few"] * 2, ["few", "many"] * 2)


def test_who_hangs_holds_up_nobody_else(make: Callable[[int], Reader]) -> None:
    reader, goes_on = make(2), threading.Event()

    async def main() -> list[str]:
        hanging = [asyncio.ensure_future(reader.run("hangs", goes_on.wait)) for _ in range(8)]
        await asyncio.sleep(0)
        read = [await reader.run(tenant, str) for tenant in ("a", "b", "a")]
        goes_on.set()
        await asyncio.gather(*hanging)
        return read

    assert asyncio.run(asyncio.wait_for(main(), MOST_SECONDS)) == ["", "", ""]


def test_what_nobody_waits_for_is_not_read(make: Callable[[int], Reader]) -> None:
    reader, goes_on, read = make(1), threading.Event(), list[int]()

    async def main() -> None:
        first = asyncio.ensure_future(reader.run("a", goes_on.wait))
        gone = asyncio.ensure_future(reader.run("a", lambda: read.append(1)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        goes_on.set()
        await first
        await reader.run("a", lambda: read.append(2))

    asyncio.run(main())
    assert read == [2]


def test_it_is_stuck_while_every_thread_is_busy_and_work_waits(
    make: Callable[[int], Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "STUCK_SECONDS", 0.0)
    reader, goes_on = make(2), threading.Event()

    async def main() -> None:
        tasks = []
        for tenant, is_stuck in (("a", False), ("a", False), ("b", True)):
            tasks.append(asyncio.ensure_future(reader.run(tenant, goes_on.wait)))
            await asyncio.sleep(0.05)
            assert (reader.stuck_seconds > 0) == is_stuck
        goes_on.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    wait_until(lambda: not reader.stuck_seconds)


def test_after_the_end_nothing_is_read(make: Callable[[int], Reader]) -> None:
    reader, goes_on = make(1), threading.Event()

    async def main() -> None:
        first = asyncio.ensure_future(reader.run("a", goes_on.wait))
        second = asyncio.ensure_future(reader.run("b", lambda: None))
        wait_for = asyncio.get_running_loop().time() + MOST_SECONDS
        while reader.num_waiting != 1:
            assert asyncio.get_running_loop().time() < wait_for
            await asyncio.sleep(0.005)
        assert reader.close() == ["a"]
        for late in (first, second, reader.run("c", lambda: None)):
            with pytest.raises(EngineClosedError):
                await late
        goes_on.set()
        while reader.close():
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(main(), MOST_SECONDS))


def test_a_process_ends_while_something_hangs() -> None:
    done = processes.run(script=HANGS, timeout=MOST_SECONDS)
    assert (done.returncode, done.stdout.strip()) == (0, "['alice']"), done.stderr
