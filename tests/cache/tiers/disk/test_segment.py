"""Whatever is in a file, reading it finds whole entries that were written, or none."""

from pathlib import Path
from random import Random

import pytest

from cache_files import mutate
from page_records import key, make_put
from pagoda.cache.tiers.disk.ledger import Entry, Place
from pagoda.cache.tiers.disk.segment import NOTE_NBYTES, SegmentWriter, load, note, opened, read


@pytest.fixture
def file(tmp_path):
    return tmp_path / "segment-00000001.log"


def replace(file, data):
    """Not written over: then the file system would wait for the disk."""
    file.unlink()
    file.write_bytes(data)


def write(file, numbers=range(5), *, is_finished=True):
    """The entries of a segment with a note that the record of 1 was dropped."""
    writer, entries = SegmentWriter(file), []
    for number in numbers:
        put = make_put(number, 40 * number)
        writer.append(put.record)
        entries.append(Entry(put.key, len(put.record)))
    writer.append(note(key(1)))
    entries.append(Entry(key(1), NOTE_NBYTES, is_drop=True))
    if is_finished:
        writer.finish(entries)
    writer.close()
    return entries


def test_entries_are_found_with_a_footer_and_without(file):
    entries = write(file)
    finished = load(file)
    assert (finished.entries, finished.is_finished) == (entries, True)
    write(file, is_finished=False)
    loaded = load(file)
    assert (loaded.entries, loaded.is_finished, loaded.end) == (entries, False, finished.end)
    assert finished.nbytes > loaded.nbytes == loaded.end


def test_what_was_appended_since_is_found_behind_it(file):
    entries = write(file, is_finished=False)
    start = sum(entry.nbytes for entry in entries[:3])
    assert load(file, start).entries == entries[3:]


def test_a_footer_with_any_byte_changed_is_passed_over(file):
    entries = write(file)
    whole, end = file.read_bytes(), load(file).end
    for position in range(end, len(whole)):
        replace(file, whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        loaded = load(file)
        assert (loaded.entries, loaded.is_finished, loaded.end) == (entries, False, end)


def test_a_torn_tail_ends_where_its_last_whole_entry_does(file):
    entries = write(file, range(3), is_finished=False)
    whole = file.read_bytes()
    ends = [sum(entry.nbytes for entry in entries[:count]) for count in range(len(entries) + 1)]
    for nbytes in range(len(whole)):
        replace(file, whole[:nbytes])
        count = sum(end <= nbytes for end in ends) - 1
        assert load(file) == (entries[:count], ends[count], nbytes, False)


@pytest.mark.parametrize("is_finished", [True, False])
def test_mutated_files_never_raise(file, is_finished):
    entries = write(file, is_finished=is_finished)
    whole, draw = file.read_bytes(), Random(0)
    for _ in range(1500):
        replace(file, mutate(whole, draw))
        loaded = load(file)
        assert sum(entry.nbytes for entry in loaded.entries) == loaded.end <= loaded.nbytes == file.stat().st_size
        assert all(entry in entries for entry in loaded.entries)


def test_places_that_are_not_there_have_nothing(file, tmp_path):
    write(file)
    size = file.stat().st_size
    with opened(file) as descriptor:
        assert read(descriptor, [Place(1, size, 1), Place(1, size - 5, 6)]) == [None, None]
        assert read(descriptor, [Place(1, size - 5, 5)])[0] == file.read_bytes()[-5:]
    with opened(Path(tmp_path / "gone")) as descriptor:
        assert read(descriptor, [Place(1, 0, 1)]) == [None]
