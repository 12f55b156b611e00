"""Tiers below pages on a device that does its work late, and in any order that events allow.

The machine of `test_tier_machine.py`, with pages behind the streams of a fake device: what is computed, copied out and
copied in waits until somebody needs it, or a rule has a stream go on. Whoever does not wait for what must come before
finds other tokens than there should be. Records are looked at when tiers get them, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from fake_device import FakePinning, fake_streams
from pagoda.cache.inspector import Inspector
from pagoda.cache.residency.movers import ThreadMovers
from pagoda.cache.residency.writer import ToWrite
from pagoda.cache.tiers.base import Put, Tier
from pagoda.cache.tiers.record import Kind, read_record
from pagoda.cache.transfers.base import Event, PageCopy
from pagoda.cache.transfers.device import DeviceTransfers
from pagoda.cache.transfers.pinned import PinnedMemory
from stateful.test_tier_machine import (
    GARBAGE,
    NUM_PAGES,
    NUM_SLOTS,
    PAGE_TOKENS,
    SHAPES,
    STATE_NBYTES,
    Shape,
    TierMachine,
    state_of,
)

# So few records may wait for a tier that some are dropped while their pages are still being copied.
MOST_WAITING = 4
# Small enough for memory that comes back to be given out again at once.
SLAB_NBYTES = 1 << 12


class DevicePages:
    """Pages whose bytes are looked at and changed in the order of a stream; `wrong` has what was not as it should be.

    What is looked at says so there, and does not raise: it may be anybody who has it done.
    """

    def __init__(self, num_pages: int, page_nbytes: int, streams: Any, memory: PinnedMemory, wrong: list[str]) -> None:
        self.page_nbytes = page_nbytes
        self._pages = torch.full((num_pages, page_nbytes), GARBAGE, dtype=torch.uint8)
        self._bytes = self._pages.numpy()
        self._compute = streams.compute
        self._wrong = wrong
        self.transfers = DeviceTransfers(self._pages, streams, memory)

    def prepare(self, page: int) -> None:
        self.transfers.before_change(page)
        self._compute.give(lambda: self._bytes[page].fill(GARBAGE))

    def copy(self, source: int, target: int) -> None:
        self.transfers.before_change(target)

        def copy() -> None:
            self._bytes[target] = self._bytes[source]

        self._compute.give(copy)

    def memory(self, nbytes: int) -> Any:
        return self.transfers.memory(nbytes)

    def read(self, copies: Sequence[PageCopy]) -> Event:
        return self.transfers.read(copies)

    def moment(self) -> Event:
        return self.transfers.moment()

    def write(self, copies: Sequence[PageCopy], after: Event) -> Event:
        return self.transfers.write(copies, after)

    def set_bytes(self, page: int, start: int, new: bytes) -> None:
        def change() -> None:
            self._bytes[page, start : start + len(new)] = np.frombuffer(new, np.uint8)

        self._compute.give(change)

    def check_bytes(self, page: int, expected: bytes) -> None:
        def look() -> None:
            found = self._bytes[page, : len(expected)].tobytes()
            if found != expected:
                self._wrong.append(f"page {page} has {found!r}, not {expected!r}")

        self._compute.give(look)

    def check_garbage(self, page: int) -> None:
        self.check_bytes(page, bytes([GARBAGE]) * self.page_nbytes)


class DeviceTokens(DevicePages):
    """An int32 for each token."""

    def blank(self, body: Any, num_tokens: int) -> None:
        body.view(np.uint8)[4 * num_tokens :] = 0

    def compute(self, page: int, start: int, tokens: Sequence[int]) -> None:
        self.set_bytes(page, 4 * start, np.array(tokens, np.int32).tobytes())

    def check(self, page: int, tokens: Sequence[int]) -> None:
        self.check_bytes(page, np.array(tokens, np.int32).tobytes())


class DeviceStates(DevicePages):
    """A digest of all tokens before."""

    def blank(self, body: Any, num_tokens: int) -> None:
        raise AssertionError("a state is whole")

    def compute(self, page: int, tokens: Sequence[int]) -> None:
        self.set_bytes(page, 0, state_of(tokens).tobytes())

    def check(self, page: int, tokens: Sequence[int]) -> None:
        self.check_bytes(page, state_of(tokens).tobytes())


class LaterWriting:
    """Writes what waits when it is told to flush."""

    num_skipped = 0

    def __init__(self, tier: Tier, check: Callable[[memoryview], None]) -> None:
        self._tier = tier
        self._check = check
        self._waiting: dict[bytes, ToWrite] = {}

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self._waiting.values())

    def waits(self, key: bytes) -> bool:
        return key in self._waiting

    def offer(self, staged: ToWrite) -> bool:
        if len(self._waiting) < MOST_WAITING:
            self._waiting[staged.key] = staged
        return staged.key in self._waiting

    def use(self, keys: list[bytes]) -> None: ...

    def drop(self, keys: list[bytes]) -> None:
        self.flush()
        self._tier.drop(keys)

    def flush(self, seconds: float | None = None) -> bool:
        for key, staged in self._waiting.items():
            record = staged.record()
            self._check(record)
            self._tier.put([Put(key, record)])
        self._waiting.clear()
        return True

    def close(self, seconds: float) -> None:
        self.flush()


class LaterMovers(ThreadMovers):
    def __init__(self, check: Callable[[memoryview], None]) -> None:
        super().__init__()
        self._check = check

    def writing_to(self, tier: Tier) -> Any:
        return LaterWriting(tier, self._check)


class TransferMachine(TierMachine):
    def start_process(self) -> None:
        self.streams: Any = fake_streams()
        self.memory = PinnedMemory(FakePinning(), SLAB_NBYTES)
        self.memory.reserve(2 * SLAB_NBYTES)
        self.wrong: list[str] = []
        super().start_process()

    def make_pages(self) -> Any:
        return DeviceTokens(NUM_PAGES, 4 * PAGE_TOKENS, self.streams, self.memory, self.wrong)

    def make_states(self) -> Any:
        return DeviceStates(NUM_SLOTS, STATE_NBYTES, self.streams, self.memory, self.wrong)

    def make_movers(self) -> ThreadMovers:
        return LaterMovers(self.check_record)

    def check_record(self, data: memoryview) -> None:
        """The bytes of a page of tokens are the tokens that its label says."""
        record = read_record(data)
        if record.header.kind == Kind.PAGE and record.body[: len(record.tokens)] != record.tokens:
            self.wrong.append(f"a record of {record.tokens!r} has {record.body.tobytes()!r}")

    @rule()
    def restart(self) -> None:
        self.residency.close()
        self.end_work()
        self.tiers[0].records.clear()
        self.start_process()

    @rule(which=st.integers(0, 2), count=st.sampled_from((1, 2, 5, 1000)))
    def go_on_with(self, which: int, count: int) -> None:
        """The device does some of what it was given."""
        for _ in range(count):
            if not self.streams[which].run_one():
                break

    @rule()
    def write(self) -> None:
        self.residency.flush()

    @invariant()
    def everything_adds_up(self) -> None:
        Inspector(self.cache).check_integrity()
        for live in self.live:
            self.check(live)
        assert not self.wrong

    def poison_free_pages(self) -> None:
        super().poison_free_pages()
        self.streams.compute.run_all()

    def end_work(self) -> None:
        for store in self.stores:
            store.transfers.close()
        for stream in self.streams:
            stream.run_all()
        assert not self.wrong

    def teardown(self) -> None:
        super().teardown()
        self.end_work()


@pytest.mark.parametrize("name", ["all", "evicted", "window beside all", "states and windows"])
def test_no_order_of_the_device_brings_wrong_tokens(name: str) -> None:
    shape: Shape = SHAPES[name]
    machine = type("Machine", (TransferMachine,), {"shape": shape})
    run_state_machine_as_test(machine, settings=settings(max_examples=50, stateful_step_count=30, deadline=None))
