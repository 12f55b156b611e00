"""The order of copies beside a device's computing, rule by rule; `test_transfer_machine.py` looks for what is left."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from fake_device import FakePinning, fake_streams
from page_records import label
from pagoda.cache.cache import NoBytes
from pagoda.cache.residency import load as loading
from pagoda.cache.residency.load import Load, Part, Place
from pagoda.cache.tiers.base import Put
from pagoda.cache.tiers.host import HostTier
from pagoda.cache.tiers.record import Draft
from pagoda.cache.transfers.base import PageCopy, page_copies
from pagoda.cache.transfers.device import DeviceTransfers
from pagoda.cache.transfers.pinned import PinnedMemory

NBYTES = 64


class Device:
    """Pages of a fake device, each of one value, and what they are moved by."""

    def __init__(self, num_pages: int = 4) -> None:
        self.streams: Any = fake_streams()
        self.pages = torch.zeros(num_pages, NBYTES, dtype=torch.uint8)
        self.memory = PinnedMemory(FakePinning(), 1 << 12)
        self.transfers = DeviceTransfers(self.pages, self.streams, self.memory)

    def compute(self, page: int, value: int) -> None:
        def fill() -> None:
            self.pages[page] = value

        self.transfers.before_change(page)
        self.streams.compute.give(fill)

    def read(self, *pages: int) -> tuple[list[Any], Any]:
        bodies = [self.transfers.memory(NBYTES) for _ in pages]
        return bodies, self.transfers.read([PageCopy(*each) for each in zip(pages, bodies, strict=True)])

    def write(self, pages: Sequence[int], value: int) -> Any:
        body = np.full(NBYTES * len(pages), value, np.uint8)
        return self.transfers.write([*page_copies(pages, body, NBYTES)], self.transfers.moment())


def test_a_page_is_read_as_it_is_when_that_is_said() -> None:
    device = Device()
    device.compute(1, 5)
    device.compute(2, 6)
    bodies, event = device.read(1, 2)
    device.compute(1, 7)
    event.wait()
    assert [set(each.tolist()) for each in bodies] == [{5}, {6}]
    device.streams.compute.run_all()
    assert device.pages[1, 0] == 7


def test_a_page_is_not_changed_before_it_was_read() -> None:
    device = Device()
    device.compute(1, 5)
    bodies, event = device.read(1)
    device.compute(1, 7)
    device.streams.compute.run_all()
    assert event.is_over
    assert set(bodies[0].tolist()) == {5}


def test_pages_that_are_not_on_their_way_wait_for_nothing() -> None:
    device = Device()
    device.compute(1, 5)
    _, event = device.read(1)
    device.compute(2, 6)
    device.streams.compute.run_all()
    assert not event.is_over
    assert device.pages[2, 0] == 6


def test_a_page_is_written_after_all_that_was_told_of_it() -> None:
    device = Device()
    device.compute(1, 5)
    bodies, _ = device.read(1)
    device.compute(1, 255)
    event = device.write([1, 2], 9)
    event.wait()
    assert device.pages[1:3].unique().tolist() == [9]
    assert set(bodies[0].tolist()) == {5}


def test_nothing_is_kept_of_what_is_over() -> None:
    device = Device()
    for value in range(50):
        device.compute(1, value)
        _, event = device.read(1, 2)
        event.wait()
        device.write([3], value).wait()
    device.read(1)
    assert len(device.transfers._read) == len(device.transfers._written) == len(device.transfers._leaving) == 1
    device.transfers.close()
    assert not device.transfers._read
    assert not device.transfers._leaving


class CallsOff:
    """A cipher that has a load called off while it looks at the second record; `found` is in the first page then."""

    extra_nbytes = 0

    def __init__(self, pages: torch.Tensor) -> None:
        self.load: Load | None = None
        self.num_seen = 0
        self.found: int | None = None
        self._pages = pages

    def new_nonce(self) -> bytes:
        return bytes(12)

    def encrypt(self, payload: Any, nonce: bytes, fields: bytes) -> bytes:
        return bytes(payload)

    def decrypt(self, payload: Any, nonce: bytes, fields: bytes) -> bytes:
        self.num_seen += 1
        if self.num_seen == 2:
            assert self.load is not None
            self.load.call_off()
            self.found = int(self._pages[0, 0])
        return bytes(payload)


class Store(NoBytes):
    """Pages of a device."""

    def __init__(self, device: Device) -> None:
        super().__init__(NBYTES)
        self.device = device

    def write(self, copies: Sequence[PageCopy], after: Any) -> Any:
        return self.device.transfers.write(copies, after)


def test_who_calls_a_load_off_may_use_its_pages_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "COPY_NBYTES", 1)
    device, tier = Device(), HostTier(None)
    cipher = CallsOff(device.pages)
    labels = [label(number) for number in range(2)]
    for each in labels:
        draft = Draft(each, NBYTES)
        draft.body[:] = 9
        tier.put([Put(each.key, draft.seal(0, cipher))])
    place = Place(Store(device), device.transfers.moment())
    load = cipher.load = Load([Part(each, tier, place, [[n]]) for n, each in enumerate(labels)], cipher, lambda: None)
    with ThreadPoolExecutor(1) as executor:
        load.begin(executor)
    assert load.is_done
    assert cipher.found == 9, "nothing was on its way any more once it was called off"
    assert device.pages[:2, 0].tolist() == [9, 0]
    device.compute(0, 3)
    for stream in device.streams:
        stream.run_all()
    assert device.pages[:2, 0].tolist() == [3, 0]
