"""What a tier is told, and in which order."""

from __future__ import annotations

from threading import Event

from pagoda.cache.residency.writer import Writer
from pagoda.cache.tiers.host import HostTier


class Heard(HostTier):
    """Notes calls, the first of which ends when it may."""

    def __init__(self) -> None:
        super().__init__(None, 0)
        self.calls: list[tuple[str, list[bytes]]] = []
        self.may_go_on, self.is_called = Event(), Event()

    def put(self, records):
        self._heard("put", [each.key for each in records])
        return super().put(records)

    def use(self, keys):
        self._heard("use", sorted(keys))

    def drop(self, keys):
        self._heard("drop", keys)

    def _heard(self, what, keys):
        self.calls.append((what, keys))
        self.is_called.set()
        assert self.may_go_on.wait(60)


class Record:
    nbytes = 3 << 20  # one fills a batch

    def __init__(self, key: bytes) -> None:
        self.key = key

    def record(self) -> memoryview:
        return memoryview(bytes(8))


def test_hits_are_told_once_their_records_are_there() -> None:
    tier = Heard()
    writer = Writer(tier, 64 << 20)
    writer.offer(Record(b"first"))
    assert tier.is_called.wait(60)
    writer.offer(Record(b"second"))
    for _ in range(2):
        writer.use([b"first", b"second", b"earlier"])
    writer.drop([b"gone"])
    tier.may_go_on.set()
    assert writer.flush(60)
    writer.close(60)
    assert tier.calls == [
        ("put", [b"first"]),
        ("use", [b"earlier", b"first"]),
        ("put", [b"second"]),
        ("use", [b"second"]),
        ("drop", [b"gone"]),
    ]
