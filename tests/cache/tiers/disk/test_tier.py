"""A disk tier bounds its files, survives what happens to them, and shares its folder with readers."""

import errno
import os
import time
from contextlib import contextmanager
from random import Random
from threading import Thread

import pytest

from cache_files import mutate
from page_records import key, make_put
from pagoda.cache.tiers.base import TierSettings
from pagoda.cache.tiers.disk import tier as module
from pagoda.cache.tiers.disk.folder import LOCK_FILE, VERSION_FILE
from pagoda.cache.tiers.disk.tier import LEAST_LIMIT_NBYTES, DiskTier
from pagoda.cache.tiers.record import HEADER_NBYTES
from pagoda.errors import ConfigError, TierError

LIMIT_NBYTES = 1 << 17


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "pages"


@contextmanager
def opened(folder, limit_nbytes=LIMIT_NBYTES):
    tier = DiskTier.open(TierSettings(str(folder), limit_nbytes))
    try:
        yield tier
    finally:
        tier.close()


def fill(folder, numbers, nbytes=500):
    with opened(folder) as tier:
        assert all(tier.put([make_put(number, nbytes) for number in numbers]))


def held(tier, numbers):
    return [
        number
        for number, is_held in zip(numbers, tier.contains([key(each) for each in numbers]), strict=True)
        if is_held
    ]


def files_nbytes(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def segments(folder):
    return sorted(folder.glob("segment-*.log"))


def flip(file, position):
    """One bit of a byte, another one in each."""
    with file.open("r+b", buffering=0) as handle:
        handle.seek(position)
        (byte,) = handle.read(1)
        handle.seek(position)
        handle.write(bytes([byte ^ 1 << position % 8]))


def until(condition):
    """Waits for what another thread does."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class TestLimit:
    @pytest.mark.parametrize("seed", range(3))
    def test_files_never_pass_it(self, folder, seed):
        draw = Random(seed)
        limit = draw.choice((LEAST_LIMIT_NBYTES, LIMIT_NBYTES, 3 * LIMIT_NBYTES + 1))
        for _ in range(4):
            with opened(folder, limit) as tier:
                for number in range(100):
                    tier.put([make_put(draw.randrange(1000), draw.choice((0, 10, 800, limit // 3)))])
                    assert files_nbytes(folder) <= limit
                    tier.get([key(draw.randrange(1000)) for _ in range(5)])
                    if number % 10 == 0:
                        tier.drop([key(draw.randrange(1000))])
                        assert files_nbytes(folder) <= limit
                assert tier.stats().nbytes >= files_nbytes(folder)
            assert files_nbytes(folder) <= limit
            assert tier.stats().nbytes == files_nbytes(folder)

    def test_a_smaller_one_holds_from_the_start(self, folder):
        fill(folder, range(150))
        with opened(folder, LEAST_LIMIT_NBYTES) as tier:
            assert files_nbytes(folder) <= LEAST_LIMIT_NBYTES
            assert 50 < len(held(tier, range(150))) < 100
            assert held(tier, range(149, 150))

    def test_without_one_nothing_goes(self, folder):
        with opened(folder, None) as tier:
            assert all(tier.put([make_put(number, 5000) for number in range(100)]))
            assert len(held(tier, range(100))) == 100

    def test_segments_of_many_starts_are_joined(self, folder):
        for number in range(20):
            fill(folder, [number])
        assert len(segments(folder)) < 5
        with opened(folder) as tier:
            assert held(tier, range(20)) == list(range(20))

    def test_one_segment_that_cannot_be_removed_stops_nothing(self, folder, monkeypatch):
        with opened(folder) as tier:
            tier.put([make_put(number) for number in range(150)])
            stuck, real = segments(folder)[0].name, os.unlink

            def unlink(path, **options):
                if os.fspath(path).endswith(stuck):
                    raise PermissionError(errno.EACCES, "no")
                real(path, **options)

            monkeypatch.setattr(os, "unlink", unlink)
            for number in range(150, 600):
                assert tier.put([make_put(number)]) == [True]
                assert files_nbytes(folder) <= LIMIT_NBYTES
            assert held(tier, [0, 20, 400, 599]) == [0, 599]


class TestDamage:
    def test_every_byte_of_a_record_counts(self, folder):
        put = make_put(7, 40)
        fill(folder, [1])
        fill(folder, [7], 40)
        fill(folder, [2])
        (file,) = segments(folder)
        start = file.read_bytes().index(put.record)
        for position in range(start, start + len(put.record)):
            flip(file, position)
            with opened(folder) as tier:
                assert tier.contains([key(7)]) == [True]
                assert tier.get([key(number) for number in (1, 7, 2)]) == [make_put(1).record, None, make_put(2).record]
                assert tier.contains([key(7)]) == [False]
                assert tier.stats().num_damaged == 1
            flip(file, position)
        with opened(folder) as tier:
            assert tier.get([key(7)]) == [put.record]

    def test_folders_with_mutated_files_are_read_and_written(self, folder):
        fill(folder, range(60), 300)
        saved = {file: file.read_bytes() for file in segments(folder)}
        draw = Random(1)
        for _ in range(150):
            for file in segments(folder):
                file.unlink()
            for file, data in saved.items():
                file.write_bytes(mutate(data, draw) if draw.random() < 0.4 else data)
            with opened(folder) as tier:
                for number, record in enumerate(tier.get([key(number) for number in range(60)])):
                    assert record in (None, make_put(number, 300).record)
                assert tier.put([make_put(99, 300)]) == [True]
                assert tier.get([key(99)]) == [make_put(99, 300).record]
                assert files_nbytes(folder) <= LIMIT_NBYTES
                assert files_nbytes(folder) <= tier.stats().nbytes

    def test_files_that_are_none_of_ours_are_left_alone(self, folder):
        fill(folder, [1])
        (folder / "segment-00000007.log").mkdir()
        (folder / "segment-000000001.log").write_bytes(b"x")
        (folder / "segment-00000009.log").symlink_to(folder / VERSION_FILE)
        (folder / "notes.txt").write_text("mine")
        before = set(folder.iterdir())
        with opened(folder) as tier:
            assert held(tier, [1]) == [1]
            tier.clear()
        assert before - set(folder.iterdir()) == {folder / "segment-00000001.log"}

    def test_what_is_no_record_of_its_key_is_not_taken(self, folder):
        with opened(folder) as tier:
            put = make_put(1)
            cut = put.record[: HEADER_NBYTES + 5]
            assert tier.put([put._replace(key=key(2)), put._replace(record=cut), put]) == [False, False, True]


class TestFolder:
    def test_another_version_says_what_to_do(self, folder):
        fill(folder, [1])
        (folder / VERSION_FILE).write_text("pagoda pages, version 2\n")
        with pytest.raises(TierError, match="name another folder, or delete"):
            DiskTier.open(TierSettings(str(folder), LIMIT_NBYTES))

    def test_segments_of_no_version_are_not_taken_over(self, folder):
        fill(folder, [1])
        (folder / VERSION_FILE).unlink()
        with pytest.raises(TierError, match="another version"):
            DiskTier.open(TierSettings(str(folder), LIMIT_NBYTES))

    def test_a_file_is_no_folder(self, folder):
        folder.write_text("")
        for path in (folder, folder / "below"):
            with pytest.raises(ConfigError, match="no folder"):
                DiskTier.open(TierSettings(str(path), LIMIT_NBYTES))

    def test_a_limit_that_holds_nothing_is_refused(self, folder):
        with pytest.raises(ConfigError, match="at least"):
            DiskTier.open(TierSettings(str(folder), LEAST_LIMIT_NBYTES - 1))

    @pytest.mark.parametrize("call", ["mkdir", "scandir"])
    def test_no_permission_says_what_to_do(self, folder, monkeypatch, call):
        def refuse(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, call, refuse)
        with pytest.raises(TierError, match="Permission denied; "):
            DiskTier.open(TierSettings(str(folder), LIMIT_NBYTES))

    def test_a_folder_that_cannot_be_written_is_read(self, folder, monkeypatch):
        fill(folder, range(3))
        real = os.open

        def read_only(path, flags, *mode, **options):
            if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
                raise OSError(errno.EROFS, "Read-only file system")
            return real(path, flags, *mode, **options)

        monkeypatch.setattr(os, "open", read_only)
        with opened(folder) as tier:
            assert "Read-only file system" in tier.stats().fault
            assert tier.get([key(1)]) == [make_put(1).record]
            assert tier.put([make_put(9)]) == [False]


class TestReaders:
    def test_a_second_one_reads_and_writes_nothing(self, folder):
        with opened(folder) as writer:
            writer.put([make_put(number) for number in range(5)])
            before = {path: path.read_bytes() for path in folder.iterdir()}
            with opened(folder) as reader:
                assert "Another process" in reader.stats().fault
                assert reader.get([key(1)]) == [make_put(1).record]
                assert reader.put([make_put(9), make_put(1)]) == [False, True]
                reader.drop([key(1)])
                reader.clear()
                reader.flush()
                assert held(reader, range(5)) == list(range(5))
            assert {path: path.read_bytes() for path in folder.iterdir()} == before
            assert writer.stats().fault is None

    def test_it_learns_what_came_and_went(self, folder, monkeypatch):
        monkeypatch.setattr(module, "REFRESH_SECONDS", 0)
        with opened(folder) as writer, opened(folder) as reader:
            assert held(reader, [0]) == []
            for number in range(600):
                writer.put([make_put(number)])
                if number == 3:
                    until(lambda: held(reader, [0, 3]) == [0, 3])
            until(lambda: held(reader, range(600)) == held(writer, range(600)))
            assert reader.get([key(0), key(599)]) == [None, make_put(599).record]
            writer.drop([key(599)])
            until(lambda: (held(reader, [1000]), held(reader, [599])) == ([], []))

    def test_it_asks_no_more_than_once_in_a_while(self, folder, monkeypatch):
        with opened(folder), opened(folder) as reader:
            for number in range(50):
                reader.contains([key(number)])
                reader.get([key(number)])
            assert reader._refresher is None

    def test_it_writes_when_the_one_that_wrote_is_gone(self, folder, monkeypatch):
        monkeypatch.setattr(module, "REFRESH_SECONDS", 0)
        with opened(folder) as writer:
            reader = DiskTier.open(TierSettings(str(folder), LIMIT_NBYTES))
            writer.put([make_put(1)])
        until(lambda: not held(reader, [9]) and reader.stats().fault is None)
        assert reader.put([make_put(2)]) == [True]
        assert held(reader, [1, 2]) == [1, 2]
        with opened(folder) as third:
            assert third.stats().fault is not None
        reader.close()

    def test_who_took_over_does_not_find_its_own_lock(self, folder):
        with opened(folder):
            reader = DiskTier.open(TierSettings(str(folder), LIMIT_NBYTES))
        with reader._writing:
            late = [Thread(target=reader._refresh) for _ in range(2)]
            for each in late:
                each.start()
        for each in late:
            each.join()
        assert reader.stats().fault is None
        assert reader.put([make_put(1)]) == [True]
        reader.close()

    def test_it_follows_a_log_that_began_again(self, folder, monkeypatch):
        monkeypatch.setattr(module, "REFRESH_SECONDS", 0)
        fill(folder, range(100))
        first = segments(folder)[0]
        saved = first.read_bytes()
        with opened(folder) as writer, opened(folder) as reader:
            writer.clear()
            until(lambda: held(reader, range(101)) == [])
            first.write_bytes(saved)
            until(lambda: held(reader, [0, 100]) == [0])

    def test_a_segment_that_went_while_it_was_read_is_a_miss(self, folder):
        with opened(folder) as writer, opened(folder) as reader:
            writer.put([make_put(1)])
            reader._log.load()
            writer.clear()
            assert held(reader, [1]) == [1]
            assert reader.get([key(1)]) == [None]
            assert held(reader, [1]) == []


def test_the_lock_outlives_nobody(folder):
    fill(folder, [1])
    assert (folder / LOCK_FILE).exists()
    with opened(folder) as tier:
        assert tier.stats().fault is None
