"""A file of records may come from anywhere: what is read of it was written, or it says where it ends."""

from random import Random

import pytest

from cache_files import mutate
from page_records import make_put
from pagoda.cache.tiers.disk.archive import read_archive, write_archive
from pagoda.cache.tiers.record import check_record
from pagoda.errors import ConfigError, PageRecordError, TierError


@pytest.fixture
def file(tmp_path):
    return tmp_path / "manuals.pages"


def records():
    return [make_put(number, 30 * number).record for number in range(6)]


def test_records_are_read_as_they_were_written(file):
    assert write_archive(file, records()) == 6
    assert list(read_archive(file)) == records()
    assert write_archive(file, []) == 0
    assert list(read_archive(file)) == []


def test_what_fails_leaves_what_was_there(file):
    write_archive(file, records())

    def failing():
        yield records()[0]
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 -- it is the one above
        write_archive(file, failing())
    assert list(read_archive(file)) == records()
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("data", [b"", b"PAGODAKV", bytes(100)])
def test_what_is_no_such_file_is_refused(file, data):
    file.write_bytes(data)
    with pytest.raises(ConfigError, match="no file that"):
        next(read_archive(file))


def test_another_version_is_refused(file):
    write_archive(file, records())
    data = bytearray(file.read_bytes())
    data[8] = 9
    file.write_bytes(data)
    with pytest.raises(ConfigError, match="version 9"):
        next(read_archive(file))


def test_one_that_is_cut_says_where(file):
    write_archive(file, records())
    file.write_bytes(file.read_bytes()[:-1])
    found = []
    with pytest.raises(TierError, match="within the record at byte"):
        found.extend(iter_into(found, file))
    assert found == records()[:5]


def iter_into(found, file):
    for record in read_archive(file):
        found.append(record)
    return ()


def test_mutated_files_have_no_other_records(file):
    write_archive(file, records())
    whole, draw = file.read_bytes(), Random(2)
    for _ in range(2000):
        file.unlink()
        file.write_bytes(mutate(whole, draw))
        try:
            for record in read_archive(file):
                try:
                    check_record(record)
                except PageRecordError:
                    continue
                assert record in records()
        except (ConfigError, TierError):
            continue
