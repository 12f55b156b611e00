"""What every registered tier inherits: a record comes back as it was put or not at all, and faults have names.

A tier has a line in `CASES`: how it is opened here, and what can go wrong with it.
"""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import pytest

from page_records import OVERHEAD_NBYTES, key, make_put
from pagoda.cache.tiers.base import Tier, TierSettings
from pagoda.cache.tiers.record import read_record
from pagoda.errors import ConfigError, TierError
from pagoda.registry import REGISTRY, lookup

LIMIT_NBYTES = 1 << 17
RECORD_NBYTES = 500 + OVERHEAD_NBYTES


# Makes something go wrong until the monkeypatch is undone; it is given the folder of the test, too.
Fault = Callable[[pytest.MonkeyPatch, Path], None]


@dataclass(frozen=True)
class Case:
    """How a registered tier is opened in a test: `settings` makes them of an empty folder.

    `is_bounded`: it holds a limit itself. `outlives`: what it was given is there after it was opened again. `store` is
    the fixture that gives its URL, where a server is needed.
    """

    settings: Callable[[Path], TierSettings]
    is_bounded: bool = True
    outlives: bool = True
    store: str | None = None
    faults: Mapping[str, Fault] = field(default_factory=dict)


def broken_call(name, before=None, after=None):
    """A function of `os` that does something `before` it or `after` it: `after` is given its arguments and result."""

    def inject(monkeypatch, folder):
        real = getattr(os, name)

        def call(*arguments, **options):
            if before is not None:
                before()
            result = real(*arguments, **options)
            return result if after is None else after(arguments, result)

        monkeypatch.setattr(os, name, call)

    return inject


def raising(number):
    def before():
        raise OSError(number, os.strerror(number))

    return before


def short_writes(fails_with=None):
    """Writes end after some bytes; then they go on, or fail."""

    def inject(monkeypatch, folder):
        real, calls = os.pwrite, []

        def pwrite(descriptor, data, offset):
            calls.append(offset)
            if fails_with is not None and len(calls) % 2 == 0:
                raising(fails_with)()
            return real(descriptor, data[: max(1, len(data) // 3)], offset)

        monkeypatch.setattr(os, "pwrite", pwrite)

    return inject


def flip(arguments, num_read):
    buffer = arguments[1][0]
    buffer[len(buffer) // 2] ^= 1
    return num_read


DISK_FAULTS = {
    "short writes": short_writes(),
    "torn writes": short_writes(errno.EIO),
    "full": short_writes(errno.ENOSPC),
    "no more can be written": broken_call("pwrite", raising(errno.EROFS)),
    "nothing can be cut off": broken_call("ftruncate", raising(errno.EIO)),
    "nothing can be removed": broken_call("unlink", raising(errno.EACCES)),
    "nothing can be opened": broken_call("open", raising(errno.EMFILE)),
    "nothing can be synced": broken_call("fdatasync", raising(errno.EIO)),
    "bits flip": broken_call("preadv", after=flip),
    "reads fail": broken_call("preadv", raising(errno.EIO)),
    "slow": broken_call("preadv", lambda: time.sleep(0.002)),
    "gone": lambda _, folder: shutil.rmtree(folder / "pages"),
    "cut": lambda _, folder: [os.truncate(path, 700) for path in (folder / "pages").glob("segment*")],
}
CASES = {
    "host": Case(lambda _: TierSettings(limit_nbytes=LIMIT_NBYTES), outlives=False),
    "disk": Case(lambda folder: TierSettings(str(folder / "pages"), LIMIT_NBYTES), faults=DISK_FAULTS),
    "redis": Case(lambda _: TierSettings(limit_nbytes=LIMIT_NBYTES, timeout_seconds=30), store="redis_url"),
    # Its protocol is tested with a server of it (`tests/cache/tiers/test_objects.py`), which is slow.
    "s3": Case(lambda folder: TierSettings(f"file://{folder}/objects", LIMIT_NBYTES)),
}
# Of a tier that has no line: it is opened with nothing, and ends with the process.
PLAIN = Case(lambda _: TierSettings(limit_nbytes=LIMIT_NBYTES), outlives=False)
FAULTS = [(name, fault) for name, case in CASES.items() for fault in case.faults]
every_tier = pytest.mark.parametrize("name", REGISTRY["tier"])


def case_of(name):
    return CASES.get(name, PLAIN)


@pytest.fixture
def opened(request, tmp_path):
    """Opens the tier that a test is about; all are closed behind it."""
    tiers = []

    def open_tier(name) -> Tier:
        case = case_of(name)
        settings = case.settings(tmp_path)
        if case.store is not None:
            settings = replace(settings, where=request.getfixturevalue(case.store))
        tiers.append(lookup("tier", name).open(settings))
        return tiers[-1]

    yield open_tier
    for tier in tiers:
        tier.close()


@pytest.fixture
def tier(name, opened):
    return opened(name)


def check_held(tier, numbers, nbytes=500):
    """What is returned for these is what was put; how many were."""
    found = tier.get([key(number) for number in numbers])
    for number, record in zip(numbers, found, strict=True):
        assert record is None or bytes(record) == bytes(make_put(number, nbytes).record)
    return sum(record is not None for record in found)


@every_tier
class TestRecords:
    def test_they_come_back_as_they_were_put(self, tier):
        assert tier.put([make_put(number) for number in range(9)]) == [True] * 9
        assert check_held(tier, range(9)) == 9
        for number, record in enumerate(tier.get([key(number) for number in range(9)])):
            assert read_record(record).tokens == read_record(make_put(number).record).tokens

    def test_of_many_only_those_that_are_there(self, tier):
        tier.put([make_put(1), make_put(3)])
        assert tier.contains([key(number) for number in range(5)]) == [False, True, False, True, False]
        records = tier.get([key(3), key(2), key(1), key(3)])
        assert [record is None for record in records] == [False, True, False, False]
        assert bytes(records[2]) == bytes(make_put(1).record)

    def test_of_none_there_is_nothing_to_say(self, tier):
        assert tier.put([]) == tier.get([]) == tier.contains([]) == []
        assert tier.num_leading([]) == 0
        tier.drop([])
        assert tier.stats().num_records == 0

    def test_a_gap_ends_what_leads(self, tier):
        tier.put([make_put(number) for number in (0, 1, 3)])
        assert tier.num_leading([key(number) for number in range(5)]) == 2
        assert tier.num_leading([key(1), key(3)]) == 2
        assert tier.num_leading([key(2), key(3)]) == 0

    def test_one_that_is_held_is_taken_again(self, tier):
        assert tier.put([make_put(1)] * 2) == tier.put([make_put(1)] * 2)
        assert tier.stats().num_records == 1

    def test_what_was_dropped_is_gone_and_may_come_again(self, tier):
        tier.put([make_put(number) for number in range(4)])
        tier.drop([key(1), key(7)])
        assert tier.contains([key(number) for number in range(4)]) == [True, False, True, True]
        assert tier.get([key(1)]) == [None]
        assert tier.put([make_put(1)]) == [True]
        assert check_held(tier, range(4)) == 4

    def test_all_can_be_forgotten(self, tier):
        tier.put([make_put(number) for number in range(9)])
        tier.clear()
        assert tier.num_leading([key(0)]) == check_held(tier, range(9)) == tier.stats().num_records == 0
        assert tier.put([make_put(1)]) == [True]

    def test_they_are_of_any_size(self, tier):
        sizes = (0, 1, 4095, 4096, 4097, 20_000)
        assert all(tier.put([make_put(size, size) for size in sizes]))
        for size in sizes:
            assert check_held(tier, [size], size) == 1

    def test_what_was_handed_out_stays_as_it_is(self, tier):
        tier.put([make_put(1)])
        (record,) = tier.get([key(1)])
        tier.clear()
        tier.put([make_put(number) for number in range(2, 50)])
        assert bytes(record) == bytes(make_put(1).record)

    def test_figures_add_up(self, tier):
        tier.put([make_put(number) for number in range(9)])
        check_held(tier, range(3))
        stats = tier.stats()
        assert (stats.num_records, stats.written_nbytes, stats.read_nbytes) == (9, 9 * RECORD_NBYTES, 3 * RECORD_NBYTES)
        assert stats.num_dropped == stats.num_refused == stats.num_errors == stats.num_damaged == 0
        assert stats.fault is None
        assert stats.nbytes >= 9 * RECORD_NBYTES

    def test_it_is_closed_twice(self, tier):
        tier.put([make_put(1)])
        tier.flush()
        tier.close()
        tier.close()


@every_tier
class TestLimits:
    @pytest.fixture(autouse=True)
    def bounded(self, name):
        if not case_of(name).is_bounded:
            pytest.skip("whoever holds the records bounds them")

    @pytest.mark.parametrize("seed", range(3))
    def test_the_limit_holds_at_every_put(self, tier, seed):
        draw = Random(seed)
        for number in range(1000):
            nbytes = draw.choice((0, 10, 500, 3000, 9000))
            assert tier.put([make_put(number, nbytes)]) == [True]
            tier.get([key(draw.randrange(number + 1)) for _ in range(3)])
            stats = tier.stats()
            assert stats.nbytes <= stats.limit_nbytes == LIMIT_NBYTES
            assert tier.contains([key(number)]) == [True]
        stats = tier.stats()
        assert stats.num_records + stats.num_dropped == 1000
        assert stats.nbytes > LIMIT_NBYTES / 2

    def test_what_is_too_large_is_refused(self, tier):
        assert tier.put([make_put(1), make_put(2, LIMIT_NBYTES), make_put(3)]) == [True, False, True]
        assert tier.stats().num_refused == 1
        assert check_held(tier, range(4)) == 2

    def test_what_is_used_stays_longest(self, tier):
        for number in range(2000):
            tier.put([make_put(number)])
            tier.get([key(0)])
        assert check_held(tier, [0]) == 1
        assert check_held(tier, range(1, 1500)) == 0


@every_tier
class TestLives:
    def test_what_outlives_the_process_is_there_again(self, name, opened):
        if not case_of(name).outlives:
            pytest.skip("it ends with the process")
        first = opened(name)
        first.put([make_put(number) for number in range(30)])
        first.drop([key(5)])
        first.close()
        second = opened(name)
        assert check_held(second, range(30)) == 29
        assert second.contains([key(5)]) == [False]
        assert all(second.put([make_put(number) for number in range(30, 60)]))
        second.close()
        assert check_held(opened(name), range(60)) == 59

    def test_another_one_ends(self, name, opened):
        first = opened(name)
        first.put([make_put(1)])
        opened(name).close()
        assert check_held(first, [1]) == 1

    def test_threads_get_what_was_put(self, tier):
        failures = []

        def hammer(seed):
            draw = Random(seed)
            try:
                for _ in range(150):
                    numbers = [draw.randrange(400) for _ in range(4)]
                    tier.put([make_put(number) for number in numbers[:2]])
                    check_held(tier, numbers)
                    tier.contains([key(number) for number in numbers])
                    if draw.random() < 0.1:
                        tier.drop([key(numbers[0])])
                    if draw.random() < 0.02:
                        tier.clear()
                    tier.stats()
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert tier.put([make_put(7)]) == [True]
        assert check_held(tier, [7]) == 1


@pytest.mark.parametrize(("name", "fault"), FAULTS)
class TestFaults:
    def test_they_are_named_or_misses_and_it_goes_on(self, name, fault, opened, tmp_path):
        tier, draw = opened(name), Random(0)
        tier.put([make_put(number, 3000) for number in range(30)])
        tier.flush()
        with pytest.MonkeyPatch.context() as monkeypatch:
            case_of(name).faults[fault](monkeypatch, tmp_path)
            for number in range(30, 130):
                self.attempt(tier, number, draw)
        for number in range(200, 300):
            self.attempt(tier, number, draw)
        tier.close()
        again = opened(name)
        check_held(again, range(300), 3000)
        assert again.stats().fault is None
        assert again.put([make_put(500, 3000)]) == [True]
        assert check_held(again, [500], 3000) == 1

    def attempt(self, tier, number, draw):
        numbers = [number, *(draw.randrange(number) for _ in range(3))]
        calls = [
            lambda: tier.put([make_put(number, 3000)]),
            lambda: check_held(tier, numbers, 3000),
            lambda: tier.drop([key(numbers[1])]) if number % 5 == 0 else None,
            tier.flush,
            lambda: tier.clear() if number % 40 == 0 else None,
        ]
        for call in calls:
            with suppress(OSError, TierError):
                call()
            assert len(tier.contains([key(each) for each in numbers])) == 4
            assert tier.stats().nbytes <= LIMIT_NBYTES

    def test_it_is_opened_or_says_why_not(self, name, fault, opened, tmp_path):
        first = opened(name)
        first.put([make_put(number, 3000) for number in range(30)])
        first.close()
        with pytest.MonkeyPatch.context() as monkeypatch:
            case_of(name).faults[fault](monkeypatch, tmp_path)
            with suppress(ConfigError, TierError):
                second = opened(name)
                self.attempt(second, 40, Random(0))
                second.close()
        assert check_held(opened(name), range(30), 3000) <= 30
