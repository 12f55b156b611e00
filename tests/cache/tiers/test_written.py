"""What a process knows of its records in a store that is not its own."""

from pagoda.cache.tiers import written
from pagoda.cache.tiers.written import Written


def test_the_least_recently_used_are_given_up():
    known = Written(limit_nbytes=30)
    for key in (b"a", b"b", b"c"):
        assert known.add(key, 10) == []
    known.used(b"a")
    assert known.add(b"d", 15) == [b"b", b"c"]
    assert (len(known), known.nbytes) == (2, 25)


def test_a_record_counts_once():
    known = Written(None)
    known.add(b"a", 10)
    known.add(b"a", 12)
    assert (len(known), known.nbytes) == (1, 12)
    assert known.forget(b"a")
    assert not known.forget(b"a")
    assert known.nbytes == 0


def test_the_oldest_beyond_what_it_remembers_are_left_to_the_store(monkeypatch):
    monkeypatch.setattr(written, "MOST_KEYS", 2)
    known = Written(None)
    for key in (b"a", b"b", b"c"):
        assert known.add(key, 10) == []
    assert known.nbytes == 20
    assert known.take_all() == [b"b", b"c"]
    assert (len(known), known.nbytes) == (0, 0)
