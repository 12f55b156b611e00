"""`pagoda kv`: what it says of a folder, what it changes, and that it leaves one alone that a server writes to."""

import json
import time

import pytest

from page_records import key, make_put
from pagoda.cache.tiers.base import TierSettings
from pagoda.cache.tiers.disk.parts import part_of
from pagoda.cache.tiers.disk.tier import DiskTier
from pagoda.cli import main

DAY_MS = 86_400_000


@pytest.fixture
def folder(tmp_path):
    """20 records of one model, 10 of another, made 40 days ago, and one that was dropped."""
    folder, now_ms = tmp_path / "pages", int(time.time() * 1000)
    tier = open_tier(folder)
    tier.put([make_put(number, 3000, created_ms=now_ms - 3 * DAY_MS) for number in range(20)])
    tier.put([make_put(number, identity=b"other", created_ms=now_ms - 40 * DAY_MS) for number in range(50, 60)])
    tier.put([make_put(99)])
    tier.drop([key(99)])
    tier.close()
    return folder


def open_tier(folder):
    return DiskTier.open(TierSettings(str(folder), 1 << 22))


def held(folder):
    tier = open_tier(folder)
    numbers = [number for number in range(100) if tier.get([key(number)]) != [None]]
    tier.close()
    return numbers


def kv(*arguments):
    return main(["kv", *map(str, arguments)])


def answer(capsys, *arguments):
    status = kv(*arguments, "--json")
    return status, json.loads(capsys.readouterr().out)


def flip(folder, position):
    file = min(folder.glob("segment-*"))
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


class TestList:
    def test_it_has_a_row_for_each_identity_kind_and_tenant(self, folder, capsys):
        status, found = answer(capsys, "ls", folder)
        assert status == 0
        assert found["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
        first, second = found["pages"]
        assert (first["identity"], first["kind"], first["records"]) == (b"model".ljust(16).hex(), "page", 20)
        assert (first["tokens"], first["bytes"]) == (80, 20 * len(make_put(0, 3000).record))
        assert (second["identity"], second["tenant"]) == (b"other".ljust(16).hex(), b"tenant".ljust(8).hex())
        assert 39 < second["newest_seconds"] / 86400 <= second["oldest_seconds"] / 86400 < 41

    def test_people_get_a_table(self, folder, capsys):
        assert kv("ls", folder) == 0
        out = capsys.readouterr().out
        assert b"other".ljust(16).hex()[:12] in out
        assert "40 d" in out
        assert max(map(len, out.splitlines())) <= 80

    @pytest.mark.parametrize("action", ["ls", "verify", "gc", "export"])
    def test_a_folder_of_something_else_is_refused_by_name(self, tmp_path, capsys, action):
        more = {"gc": ["--bytes", "1"], "export": [tmp_path / "file"]}.get(action, [])
        assert kv(action, tmp_path, *more) == 2
        assert "is no folder of stored pages" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


class TestParts:
    """Of a folder in which a tenant has a part of its own."""

    TENANT = b"alice".ljust(8)

    @pytest.fixture
    def parted(self, folder):
        tier = DiskTier.open(TierSettings(str(part_of(folder, self.TENANT)), 1 << 18))  # in several segments
        tier.put([make_put(number, 3000, tenant=self.TENANT) for number in range(200, 220)])
        tier.close()
        return folder

    def test_it_is_listed_checked_and_copied(self, parted, capsys, tmp_path):
        _, listed = answer(capsys, "ls", parted)
        assert sum(row["records"] for row in listed["pages"] if row["tenant"] == self.TENANT.hex()) == 20
        assert listed["bytes"] == sum(path.stat().st_size for path in parted.rglob("*") if path.is_file())
        assert answer(capsys, "verify", parted)[1]["records"] == 50
        flip(part_of(parted, self.TENANT), 5)
        status, found = answer(capsys, "verify", parted)
        assert (status, [each["key"] for each in found["damaged"]]) == (1, [key(200, tenant=self.TENANT).hex()])
        assert kv("export", parted, tmp_path / "all") == 0
        assert capsys.readouterr().out.startswith("49 records")

    def test_what_is_removed_goes_from_all_parts(self, parted, capsys):
        nbytes = answer(capsys, "ls", parted)[1]["bytes"]
        assert kv("gc", parted, "--bytes", nbytes // 2) == 0
        capsys.readouterr()
        left = answer(capsys, "ls", parted)[1]
        assert nbytes / 16 < left["bytes"] <= nbytes / 2
        assert [row["tenant"] for row in left["pages"]] == [self.TENANT.hex()]  # all others are in one segment
        assert kv("gc", parted, "--older", "1d") == 0
        capsys.readouterr()
        assert answer(capsys, "verify", parted)[1]["records"] == 0

    def test_nothing_is_removed_while_one_of_them_is_written_to(self, parted, capsys):
        tier = open_tier(part_of(parted, self.TENANT))
        assert kv("gc", parted, "--bytes", "0") == 1
        assert "stop it first" in capsys.readouterr().err
        tier.close()
        assert answer(capsys, "verify", parted)[1]["records"] == 50


class TestVerify:
    def test_all_is_well(self, folder, capsys):
        assert answer(capsys, "verify", folder) == (
            0,
            {"records": 30, "bytes": pytest.approx(75_000, rel=0.1), "damaged": []},
        )
        assert kv("verify", folder) == 0
        assert "nothing is damaged" in capsys.readouterr().out

    def test_what_is_damaged_is_listed(self, folder, capsys):
        size = len(make_put(0, 3000).record)
        flip(folder, size + 5)
        flip(folder, 3 * size + 500)
        status, found = answer(capsys, "verify", folder)
        assert status == 1
        assert [(each["start"], each["key"]) for each in found["damaged"]] == [
            (size, key(1).hex()),
            (3 * size, key(3).hex()),
        ]
        assert kv("verify", folder) == 1
        assert "2 damaged" in capsys.readouterr().out

    def test_a_torn_tail_is_listed(self, folder, capsys):
        (file,) = folder.glob("segment-*")
        size = len(make_put(0, 3000).record)
        file.write_bytes(file.read_bytes()[: 5 * size + 7])
        status, found = answer(capsys, "verify", folder)
        assert (status, found["records"]) == (1, 5)
        assert [(each["start"], each["bytes"], each["key"]) for each in found["damaged"]] == [(5 * size, 7, None)]


class TestCollect:
    def test_something_must_be_asked(self, folder, capsys):
        assert kv("gc", folder) == 2
        assert "--older" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "left"),
        [
            (["--older", "30d"], range(20)),
            (["--older", "2d"], []),
            (["--identity", b"model".hex()], range(50, 60)),
            (["--identity", b"other".hex(), "--older", "50d"], [*range(20), *range(50, 60)]),
            (["--bytes", "0"], []),
            (["--bytes", "1MiB"], [*range(20), *range(50, 60)]),
        ],
    )
    def test_what_is_not_asked_for_stays(self, folder, capsys, options, left):
        assert kv("gc", folder, *options) == 0
        assert f"{30 - len(left):,} records and" in capsys.readouterr().out
        assert held(folder) == list(left)
        assert kv("verify", folder) == 0

    def test_the_files_become_smaller(self, tmp_path, capsys):
        tier = DiskTier.open(TierSettings(str(tmp_path / "pages"), 1 << 18))
        tier.put([make_put(number, 1500) for number in range(140)])
        tier.close()
        assert kv("gc", tmp_path / "pages", "--bytes", "100KiB") == 0
        assert 80 << 10 < sum(path.stat().st_size for path in (tmp_path / "pages").iterdir()) <= 100 << 10

    @pytest.mark.parametrize("options", [["--bytes", "lots"], ["--older", "long"], ["--identity", "xyz"]])
    def test_what_makes_no_sense_is_refused(self, folder, capsys, options):
        with pytest.raises(SystemExit) as error:
            kv("gc", folder, *options)
        assert error.value.code == 2
        assert options[1] in capsys.readouterr().err


class TestCarry:
    def test_all_is_there_elsewhere(self, folder, tmp_path, capsys):
        file, other = tmp_path / "manuals.pages", tmp_path / "other"
        assert kv("export", folder, file) == 0
        assert "30 records" in capsys.readouterr().out
        assert kv("import", other, file) == 0
        assert "30 records taken, 0 damaged" in capsys.readouterr().out
        assert held(other) == held(folder) == [*range(20), *range(50, 60)]
        (_, found), (_, there) = answer(capsys, "ls", folder), answer(capsys, "ls", other)
        assert [row["tokens"] for row in found["pages"]] == [row["tokens"] for row in there["pages"]] == [80, 40]

    def test_no_file_is_written_over_unasked(self, folder, tmp_path, capsys):
        file = tmp_path / "manuals.pages"
        file.write_text("mine")
        assert kv("export", folder, file) == 2
        assert file.read_text() == "mine"
        assert kv("export", folder, file, "--force") == 0

    def test_what_is_damaged_is_not_taken(self, folder, tmp_path, capsys):
        file, other, size = tmp_path / "manuals.pages", tmp_path / "other", len(make_put(0, 3000).record)
        kv("export", folder, file)
        data = bytearray(file.read_bytes())
        data[32 + 3 * size - 1] ^= 1
        data[32 + 5 * size + 20] ^= 1
        file.write_bytes(data)
        capsys.readouterr()
        assert kv("import", other, file) == 1
        captured = capsys.readouterr()
        assert "4 records taken, 1 damaged" in captured.out
        assert "its header is damaged" in captured.err
        assert held(other) == [0, 1, 3, 4]

    def test_what_is_no_file_of_pages_is_refused(self, folder, tmp_path, capsys):
        (tmp_path / "file").write_text("something else")
        assert kv("import", folder, tmp_path / "file") == 2
        assert kv("import", folder, tmp_path / "nothing") == 2
        assert kv("import", folder, tmp_path) == 2


class TestServed:
    @pytest.fixture
    def server(self, folder):
        tier = open_tier(folder)
        yield tier
        tier.close()

    def test_it_can_be_looked_at(self, server, folder, tmp_path, capsys):
        server.put([make_put(30)])
        assert answer(capsys, "ls", folder)[1]["pages"][0]["records"] == 21
        assert answer(capsys, "verify", folder)[0] == 0
        assert kv("export", folder, tmp_path / "file") == 0

    def test_it_is_not_changed(self, server, folder, tmp_path, capsys):
        kv("export", folder, tmp_path / "file")
        before = {path: path.read_bytes() for path in folder.iterdir()}
        for arguments in (
            ["gc", folder, "--bytes", "0"],
            ["gc", folder, "--older", "0"],
            ["import", folder, tmp_path / "file"],
        ):
            assert kv(*arguments) == 1
            assert "only one process may change it" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
