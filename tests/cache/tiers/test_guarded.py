"""The guard: whatever a tier does is a miss at worst, and is seen."""

import threading

import pytest

from page_records import make_put
from pagoda.cache.tiers.base import Tier, TierStats
from pagoda.cache.tiers.breaker import Patience
from pagoda.cache.tiers.guarded import GuardedTier, Limits
from pagoda.errors import ConfigError, TierError

KEYS = [b"a", b"b"]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Faulty(Tier):
    """Holds records in a dictionary, until it is told to raise or to hang."""

    is_instant = False
    name = "faulty"

    def __init__(self):
        self.records = {}
        self.error = None
        self.num_calls = 0
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.is_closed = False

    @classmethod
    def open(cls, settings):
        return cls()

    def _call(self):
        self.num_calls += 1
        self.goes_on.wait()
        if self.error is not None:
            raise self.error

    def contains(self, keys):
        self._call()
        return [key in self.records for key in keys]

    def get(self, keys):
        self._call()
        return [self.records.get(key) for key in keys]

    def put(self, records):
        self._call()
        self.records |= dict(records)
        return [True] * len(records)

    def drop(self, keys):
        self._call()
        for key in keys:
            self.records.pop(key, None)

    def clear(self):
        self._call()
        self.records.clear()

    def stats(self):
        self._call()
        return TierStats(num_records=len(self.records), num_errors=1)

    def flush(self):
        self._call()

    def close(self):
        self._call()
        self.is_closed = True


class Instant(Faulty):
    is_instant = True


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tier():
    tier = Faulty()
    yield tier
    tier.goes_on.set()


def guarded(tier, clock, call_seconds=30.0, long_seconds=30.0):
    limits = Limits(call_seconds, long_seconds, most_stuck=2, patience=Patience(3, 1, 60))
    return GuardedTier("test", lambda: tier, limits, clock)


@pytest.mark.parametrize("call_seconds", [None, 30.0], ids=["in memory", "timed"])
def test_answers_pass_through(tier, clock, call_seconds):
    guard = guarded(tier, clock, call_seconds)
    record = make_put(1)
    assert guard.put([record]) == [True]
    assert guard.get([record.key, b"other"]) == [record.record, None]
    assert guard.contains([record.key, b"other"]) == [True, False]
    assert guard.num_leading([record.key, b"other"]) == 1
    assert guard.stats() == TierStats(num_records=1, num_errors=1)
    guard.drop([record.key])
    assert guard.contains([record.key]) == [False]
    guard.put([record])
    guard.clear()
    guard.flush()
    assert not tier.records
    guard.close()
    assert tier.is_closed


@pytest.mark.parametrize("call_seconds", [None, 30.0], ids=["in memory", "timed"])
@pytest.mark.parametrize("kind", [OSError, TierError, TimeoutError, ValueError])
def test_whatever_it_raises_is_a_miss(tier, clock, kind, call_seconds):
    guard = guarded(tier, clock, call_seconds)
    calls = [
        (lambda: guard.get(KEYS), [None, None]),
        (lambda: guard.contains(KEYS), [False, False]),
        (lambda: guard.num_leading(KEYS), 0),
        (lambda: guard.put([make_put(1), make_put(2)]), [False, False]),
        (lambda: guard.drop(KEYS), None),
        (guard.clear, None),
        (guard.flush, None),
    ]
    for call, nothing in calls:
        tier.error = kind("gone")
        assert call() == nothing
        tier.error = None
        guard.get(KEYS)  # so that it stays on
    assert guard.stats().num_errors == len(calls) + 1


def test_what_does_not_come_back_is_a_miss(tier, clock):
    guard = guarded(tier, clock, call_seconds=0.01, long_seconds=0.01)
    tier.goes_on.clear()
    assert guard.get(KEYS) == [None, None]
    assert guard.put([make_put(1)]) == [False]
    assert guard.num_leading(KEYS) == 0  # two calls are overdue: it is not begun
    assert tier.num_calls == 2
    assert "have not come back" in guard.stats().fault
    guard.close()


def test_calls_that_come_back_late_make_room_for_others(tier, clock):
    guard = guarded(tier, clock, call_seconds=0.01)
    tier.goes_on.clear()
    for _ in range(3):
        guard.get(KEYS)
    tier.goes_on.set()
    for thread in threading.enumerate():
        if thread.name == "pagoda-tier":
            thread.join()
    clock.now += 1
    guard.get(KEYS)
    assert guard.stats().fault is None


def test_after_failures_nothing_is_asked_until_it_is_tried_again(tier, clock):
    guard = guarded(tier, clock)
    guard.put([make_put(1)])
    tier.error = OSError("the network is down")
    for _ in range(3):
        guard.get(KEYS)
    num_calls = tier.num_calls
    assert guard.get([make_put(1).key]) == [None]
    assert guard.stats().fault == "off for 0 s, after 3 failures: the network is down"
    assert tier.num_calls == num_calls
    tier.error = None
    clock.now += 1
    assert guard.get([make_put(1).key]) == [make_put(1).record]
    assert guard.stats().fault is None


def test_what_answers_from_memory_does_not_hide_failures(clock):
    tier = Instant()
    guard = guarded(tier, clock)
    assert guard.is_instant
    guard.put([make_put(1)])
    for _ in range(3):
        tier.error = OSError("gone")
        guard.get([make_put(1).key])
        tier.error = None
        guard.stats()
        guard.contains([make_put(1).key])
    assert guard.contains([make_put(1).key]) == [False]
    assert "gone" in guard.stats().fault


def test_what_answers_from_memory_is_asked_at_once_and_may_fail(clock):
    tier = Instant()
    guard = guarded(tier, clock)
    threads = []
    tier._call = lambda: threads.append(threading.current_thread())
    guard.contains(KEYS)
    assert threads == [threading.main_thread()]
    tier._call = lambda: {}["no such key"]
    assert guard.contains(KEYS) == [False, False]
    assert guard.num_leading(KEYS) == 0


def test_a_damaged_record_is_counted_and_goes(tier, clock):
    guard = guarded(tier, clock)
    guard.put([make_put(1), make_put(2)])
    guard.damaged([make_put(1).key])
    assert guard.stats().num_damaged == 1
    assert guard.contains([make_put(1).key, make_put(2).key]) == [False, True]


def test_one_that_cannot_be_opened_yet_is_used_once_it_can(tier, clock):
    opened = [TierError("no such host"), TierError("no such host"), tier]

    def open_tier():
        result = opened.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    guard = GuardedTier("test", open_tier, Limits(), clock)
    assert guard.stats().fault == "off for 0 s, after 1 failures: no such host"
    assert not guard.is_instant
    assert guard.put([make_put(1)]) == [False]
    clock.now += 1
    assert guard.put([make_put(1)]) == [False]
    clock.now += 2
    assert guard.put([make_put(1)]) == [True]
    assert guard.stats().fault is None


def test_options_that_cannot_be_honoured_end_the_start(clock):
    def open_tier():
        raise ConfigError("a wrong password")

    with pytest.raises(ConfigError, match="a wrong password"):
        GuardedTier("test", open_tier, Limits(), clock)


def test_one_that_opens_late_is_opened_once(tier, clock):
    may_open, num_opened = threading.Event(), []

    def open_tier():
        num_opened.append(1)
        may_open.wait()
        return tier

    guard = GuardedTier("test", open_tier, Limits(call_seconds=30, long_seconds=0.01), clock)
    clock.now += 1
    assert guard.put([make_put(1)]) == [False]
    assert guard.stats().fault == "off for 1 s, after 2 failures: it is still being opened"
    may_open.set()
    for thread in threading.enumerate():
        if thread.name == "pagoda-tier":
            thread.join()
    clock.now += 2
    assert guard.put([make_put(1)]) == [True]
    assert len(num_opened) == 1


def test_one_that_opens_after_the_end_is_closed(tier, clock):
    may_open = threading.Event()

    def open_tier():
        may_open.wait()
        return tier

    guard = GuardedTier("test", open_tier, Limits(long_seconds=0.01), clock)
    guard.close()
    may_open.set()
    for thread in threading.enumerate():
        if thread.name == "pagoda-tier":
            thread.join()
    assert tier.is_closed


def test_after_closing_nothing_is_asked(tier, clock):
    guard = guarded(tier, clock)
    guard.close()
    num_calls = tier.num_calls
    assert guard.get(KEYS) == [None, None]
    guard.flush()
    assert tier.num_calls == num_calls
