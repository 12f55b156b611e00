"""What a process knows of its records in a store that is not its own."""

from pagoda.cache.tiers import written
from pagoda.cache.tiers.written import Written

RECORD = memoryview(bytes(8))


def held(known):
    stats = known.stats()
    return stats.num_records, stats.nbytes


def test_the_least_recently_used_are_given_up():
    known = Written(limit_nbytes=30)
    for key in (b"a", b"b", b"c"):
        assert known.add(key, RECORD, 10) == []
    known.used([b"a"])
    assert known.add(b"d", RECORD, 15) == [b"b", b"c"]
    assert held(known) == (2, 25)
    assert known.stats().num_dropped == 2
    assert (known.fits(30), known.fits(31)) == (True, False)


def test_a_record_counts_once():
    known = Written(None)
    known.add(b"a", RECORD, 10)
    known.add(b"a", RECORD, 12)
    assert held(known) == (1, 12)
    assert known.stats().written_nbytes == 16
    assert known.forget([b"a", b"b"]) == 1
    assert known.forget([b"a"]) == 0
    assert held(known) == (0, 0)


def test_what_is_missing_was_dropped_if_it_was_known():
    known = Written(None)
    known.add(b"a", RECORD, 10)
    known.add(b"b", RECORD, 10)
    known.read([b"a", b"b", b"c"], [None, RECORD, None])
    assert held(known) == (1, 10)
    assert (known.stats().num_dropped, known.stats().read_nbytes) == (1, 8)


def test_the_oldest_beyond_what_it_remembers_are_left_to_the_store(monkeypatch):
    monkeypatch.setattr(written, "MOST_KEYS", 2)
    known = Written(None)
    for key in (b"a", b"b", b"c"):
        assert known.add(key, RECORD, 10) == []
    assert held(known) == (2, 20)
    assert known.take_all() == [b"b", b"c"]
    assert held(known) == (0, 0)
