"""What goes when a log is full, and what of it is written again."""

from random import Random

import pytest

from pagoda.cache.tiers.disk.ledger import Entry, Place, SegmentLedger, SegmentSizes


def make_ledger(limit_nbytes=1000, segment_nbytes=100, entry_nbytes=0, fixed_nbytes=0):
    return SegmentLedger(SegmentSizes(limit_nbytes, segment_nbytes, entry_nbytes, fixed_nbytes))


def append(ledger, key, nbytes, is_drop=False):
    """As the tier does it; the keys that were written again for it."""
    again = []
    while not ledger.has_room(nbytes):
        number = ledger.numbers[0]
        survivors = ledger.survivors(number)
        ledger.remove(number)
        for survivor, place in survivors:
            if ledger.has_room(place.nbytes):
                write(ledger, Entry(survivor, place.nbytes))
                again.append(survivor)
    write(ledger, Entry(key, nbytes, is_drop))
    return again


def write(ledger, entry):
    if ledger.needs_segment(entry.nbytes):
        ledger.begin()
    ledger.append(entry)


def keys(numbers):
    return [b"%d" % number for number in numbers]


class TestPlaces:
    def test_entries_follow_each_other_until_a_segment_is_full(self):
        ledger = make_ledger()
        for key in keys(range(5)):
            append(ledger, key, 40)
        assert [ledger.find(key) for key in keys(range(5))] == [
            *(Place(1, 0, 40), Place(1, 40, 40), Place(2, 0, 40), Place(2, 40, 40), Place(3, 0, 40)),
        ]
        assert ledger.nbytes == 200

    def test_one_that_is_larger_has_a_segment_to_itself(self):
        ledger = make_ledger()
        for key, nbytes in ((b"a", 10), (b"b", 300), (b"c", 10)):
            append(ledger, key, nbytes)
        assert [ledger.find(key).segment for key in (b"a", b"b", b"c")] == [1, 2, 3]

    def test_what_was_dropped_is_not_found_until_it_comes_again(self):
        ledger = make_ledger()
        append(ledger, b"a", 10)
        append(ledger, b"a", 5, is_drop=True)
        assert b"a" not in ledger
        assert len(ledger) == 0
        append(ledger, b"a", 10)
        assert ledger.find(b"a") == Place(1, 15, 10)
        assert list(ledger.entries(1)) == [Entry(b"a", 10), Entry(b"a", 5, is_drop=True), Entry(b"a", 10)]

    def test_a_log_that_is_restored_finds_the_same(self):
        ledger, again = make_ledger(entry_nbytes=3, fixed_nbytes=7), make_ledger(entry_nbytes=3, fixed_nbytes=7)
        for number, key in enumerate(keys(range(12))):
            append(ledger, key, 20 + number, is_drop=number % 5 == 4)
        for number in ledger.numbers:
            entries = list(ledger.entries(number))
            again.restore(number, entries, again.sizes.of(len(entries), sum(entry.nbytes for entry in entries)))
        assert [again.find(key) for key in keys(range(12))] == [ledger.find(key) for key in keys(range(12))]
        assert (again.nbytes, len(again), again.next_number) == (ledger.nbytes, len(ledger), ledger.next_number)


class TestRoom:
    def test_what_is_larger_than_half_the_limit_is_not_taken(self):
        ledger = make_ledger(entry_nbytes=3, fixed_nbytes=7)
        assert ledger.takes(490)
        assert not ledger.takes(491)
        assert make_ledger(None).takes(1 << 60)

    def test_the_oldest_segment_goes_first(self):
        ledger = make_ledger(300)
        for key in keys(range(7)):
            append(ledger, key, 50)
        assert [key in ledger for key in keys(range(7))] == [False, False, True, True, True, True, True]

    def test_what_was_hit_is_written_again_once(self):
        ledger = make_ledger(300)
        for key in keys(range(6)):
            append(ledger, key, 50)
        ledger.use(b"1")
        assert append(ledger, b"6", 50) == [b"1"]
        assert b"0" not in ledger
        ledger.use(b"5")
        again = [survivor for key in keys(range(7, 20)) for survivor in append(ledger, key, 50)]
        assert again == [b"5"]
        assert b"1" not in ledger

    def test_three_quarters_of_a_segment_are_written_again_at_most(self):
        ledger = make_ledger(300)
        for key in keys(range(30)):
            append(ledger, key, 10)
            ledger.use(key)
        assert [key for key, _ in ledger.survivors(1)] == keys(range(7))

    def test_what_is_not_held_any_more_is_not_written_again(self):
        ledger = make_ledger(300)
        append(ledger, b"a", 10)
        ledger.use(b"a")
        append(ledger, b"a", 5, is_drop=True)
        append(ledger, b"a", 10)
        assert ledger.survivors(1) == []
        ledger.use(b"a")
        assert ledger.survivors(1) == [(b"a", Place(1, 15, 10))]

    @pytest.mark.parametrize("seed", range(20))
    def test_the_limit_holds_and_sums_are_right(self, seed):
        draw = Random(seed)
        ledger = make_ledger(draw.choice((400, 1000)), draw.choice((1, 50, 100)), draw.randrange(4), draw.randrange(9))
        for step in range(500):
            nbytes = draw.randrange(1, 150)
            key = b"%d" % draw.randrange(200)
            if key in ledger:
                ledger.use(key)
            elif ledger.takes(nbytes):
                append(ledger, key, nbytes)
            if draw.random() < 0.1:
                append(ledger, b"%d" % draw.randrange(200), 5, is_drop=True)
            if draw.random() < 0.05:
                ledger.forget(b"%d" % draw.randrange(200))
            assert ledger.nbytes <= ledger.sizes.limit_nbytes, step
        self.check_sums(ledger)

    def check_sums(self, ledger):
        nbytes, found = 0, {}
        for number in ledger.numbers:
            start, entries = 0, list(ledger.entries(number))
            for entry in entries:
                found[entry.key] = None if entry.is_drop else Place(number, start, entry.nbytes)
                start += entry.nbytes
            nbytes += ledger.sizes.of(len(entries), start)
        held = {key: ledger.find(key) for key in found if key in ledger}
        assert nbytes == ledger.nbytes
        assert len(held) == len(ledger)
        assert all(found[key] == place for key, place in held.items())
