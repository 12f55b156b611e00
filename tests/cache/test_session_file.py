"""Session files: what was written is read again, and nothing else is taken for it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pagoda.cache import session_file
from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.names import Identity
from pagoda.cache.session_file import FILE_HEADER_NBYTES, PARTIAL_SUFFIX, SessionFile, drop_abandoned, write_session
from pagoda.cache.session_parts import Conversation, Description
from pagoda.cache.tiers.record import HEADER_NBYTES, NONCE_NBYTES, Bytes, Draft, Kind, Label
from pagoda.errors import PageRecordError, SessionError, SessionTooLargeError

IDENTITY = Identity("config", "weights", "", "full", "bf16", "", 32, "{}")
MESSAGES = [
    {"role": "user", "content": "Wer bist du? \u2022 \\ud800"},
    {"role": "assistant", "content": [{"text": "x"}]},
]
DESCRIPTION = Description(IDENTITY, "tiny", 1_790_000_000_000, "talk", "00" * 32, 7)
CONVERSATION = Conversation(np.arange(70, dtype=np.int32), "a title", MESSAGES)
SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz_sessions.py"
MUTATIONS = 300


@dataclass
class Rot:
    """Encrypts well enough for a test: the last byte tells whether key and fields are right."""

    key: int = 1
    extra_nbytes: int = 1

    def new_nonce(self) -> bytes:
        return bytes(range(NONCE_NBYTES))

    def encrypt(self, payload: Bytes, nonce: bytes, fields: bytes) -> bytes:
        return bytes((each + self.key) % 256 for each in bytes(payload)) + self._mark(nonce + fields)

    def decrypt(self, payload: Bytes, nonce: bytes, fields: bytes) -> bytes:
        if bytes(payload[-1:]) != self._mark(nonce + fields):
            raise PageRecordError("key", "it was written with another key")
        return bytes((each - self.key) % 256 for each in bytes(payload[:-1]))

    def _mark(self, content: bytes) -> bytes:
        return bytes(((sum(content) + self.key) % 256,))


def record(number: int, cipher: Rot | None = None, identity: Identity = IDENTITY) -> memoryview:
    own = token_key(range(number * 32, number * 32 + 32))
    name, parent = bytes([number + 1] * 16), bytes([number] * 16)
    label = Label(identity.digest, bytes(16), bytes(8), Kind.PAGE, 0, name, parent, number * 32 + 32, own)
    draft = Draft(label, 100)
    draft.body[:] = number
    return draft.seal(1, cipher)


def write(path: Path, num_records: int = 2, cipher: Rot | None = None) -> int:
    records = (record(number, cipher) for number in range(num_records))
    return write_session(path, DESCRIPTION, CONVERSATION, records, cipher)


@pytest.mark.parametrize("cipher", [None, Rot()])
def test_what_was_written_is_read_again(tmp_path: Path, cipher: Rot | None) -> None:
    path = tmp_path / "talk.pagoda"
    assert write(path, cipher=cipher) == path.stat().st_size
    with SessionFile.open(path, cipher) as file:
        assert file.description == DESCRIPTION
        assert (file.conversation.title, file.conversation.messages) == ("a title", MESSAGES)
        assert file.tokens.tolist() == list(range(70))
        assert [bytes(each.body) for each in file.records()] == [bytes([0] * 100), bytes([1] * 100)]
        assert [each.tokens for each in file.records()] == [token_key(range(32)), token_key(range(32, 64))]
        assert file.keys == [each.header.key for each in file.records()]
        assert file.verify() == []


def test_a_session_may_have_neither_records_nor_tokens(tmp_path: Path) -> None:
    path = tmp_path / "talk.pagoda"
    write_session(path, DESCRIPTION, Conversation(np.array([], np.int32)), [])
    with SessionFile.open(path) as file:
        assert (file.tokens.tolist(), file.keys, file.verify()) == ([], [], [])


def test_byte_order_is_that_of_the_file_not_of_the_machine(tmp_path: Path) -> None:
    write(tmp_path / "talk.pagoda")
    content = (tmp_path / "talk.pagoda").read_bytes()
    assert content[:4] == b"PGDS"
    assert int.from_bytes(content[12:16], "little") == 70
    assert np.arange(70).astype("<i4").tobytes() in content
    assert str(tmp_path).encode() not in content


def test_with_a_key_nothing_that_was_said_can_be_read_without_it(tmp_path: Path) -> None:
    path = tmp_path / "talk.pagoda"
    write(path, cipher=Rot())
    assert b"Wer bist du" not in path.read_bytes()
    with pytest.raises(SessionError, match="no key"):
        SessionFile.open(path)
    with pytest.raises(SessionError, match="another key"):
        SessionFile.open(path, Rot(key=2))


def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "talk.pagoda"
    write(path, num_records=3)
    with SessionFile.open(path) as file:
        start = int(file._table["offset"][1])
    content = bytearray(path.read_bytes())
    content[start + HEADER_NBYTES + 5] ^= 1
    path.write_bytes(content)
    with SessionFile.open(path) as file:
        damage = file.verify()
        assert [(each.key, each.offset) for each in damage] == [(file.keys[1], start)]
        assert "damaged" in damage[0].message
        assert bytes(file.record(2).body) == bytes([2] * 100)
        with pytest.raises(PageRecordError):
            file.record(1)


def test_a_record_of_something_else_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "talk.pagoda"
    other = record(0, identity=IDENTITY._replace(weights="others"))
    write_session(path, DESCRIPTION, CONVERSATION, [other])
    with SessionFile.open(path) as file, pytest.raises(PageRecordError) as refused:
        file.record(0)
    assert refused.value.field == "identity"


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "talk.pagoda"
    write(path, num_records=1)
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes((content[at] ^ 1 << at % 8,)) + content[at + 1 :])
        try:
            with SessionFile.open(path) as file:
                assert file.verify(), at
        except SessionError:
            pass


@pytest.mark.parametrize("nbytes", [0, 1, FILE_HEADER_NBYTES, FILE_HEADER_NBYTES + 10, -1])
def test_a_cut_file_is_no_session(tmp_path: Path, nbytes: int) -> None:
    path = tmp_path / "talk.pagoda"
    write(path)
    path.write_bytes(path.read_bytes()[:nbytes])
    with pytest.raises(SessionError, match=r"no session|bytes and says"):
        SessionFile.open(path)


def test_a_file_that_is_cut_while_it_is_open_has_damaged_records(tmp_path: Path) -> None:
    path = tmp_path / "talk.pagoda"
    write(path)
    with SessionFile.open(path) as file:
        os.truncate(path, FILE_HEADER_NBYTES)
        assert len(file.verify()) == 2


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "nothing", Path("/dev/zero")):
        with pytest.raises(SessionError, match=str(path)):
            SessionFile.open(path)


@pytest.mark.parametrize(
    "changes",
    [{"name": "two\nlines"}, {"name": "n" * 201}, {"model": "\x1b[31m"}, {"created_ms": -1}, {"encoder_digest": "XY"}],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(SessionError):
        write_session(tmp_path / "talk", Description(**(vars(DESCRIPTION) | changes)), CONVERSATION, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "messages", [[{"content": "\ud800"}], [{"content": float("nan")}], [object()], ["text"], [{}] * 200_000]
)
def test_messages_that_could_not_be_read_are_not_written(tmp_path: Path, messages: list) -> None:
    with pytest.raises(SessionError):
        write_session(tmp_path / "talk", DESCRIPTION, Conversation(CONVERSATION.tokens, "", messages), [])


def test_a_write_that_fails_leaves_the_old_session_alone(tmp_path: Path) -> None:
    path = tmp_path / "talk.pagoda"
    write(path)
    before = path.read_bytes()

    def records():
        yield record(0)
        raise OSError(28, "No space left on device")

    with pytest.raises(SessionError, match="No space left"):
        write_session(path, DESCRIPTION, CONVERSATION, records())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_asks_before_it_grows(tmp_path: Path) -> None:
    path, asked = tmp_path / "talk.pagoda", []
    records = [record(number) for number in range(3)]
    nbytes = write_session(path, DESCRIPTION, CONVERSATION, records, reserve=asked.append)
    assert sum(asked) == nbytes == path.stat().st_size
    assert max(asked) < nbytes // 2

    def refuse(more: int) -> None:
        raise SessionTooLargeError("There is no room for it.")

    before = path.read_bytes()
    with pytest.raises(SessionTooLargeError):
        write_session(path, DESCRIPTION, CONVERSATION, records, reserve=refuse)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_dead_process_wrote_is_dropped_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    path, dead = tmp_path / "talk.pagoda", tmp_path / f".talk.x{PARTIAL_SUFFIX}"
    dead.write_bytes(b"begun")

    def records():
        [written] = set(tmp_path.iterdir()) - {dead}
        drop_abandoned(tmp_path)
        assert dead.exists()  # it may just have been made, and not be locked yet
        for each in (written, dead):
            os.utime(each, (0, 0))
        drop_abandoned(tmp_path)
        assert list(tmp_path.iterdir()) == [written]
        yield record(0)

    write_session(path, DESCRIPTION, CONVERSATION, records())
    assert list(tmp_path.iterdir()) == [path]


def test_a_session_is_whole_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every sync and rename of a write there is the old file, or the new one."""
    path = tmp_path / "talk.pagoda"
    write(path, num_records=1)
    before, seen = path.read_bytes(), []

    def fsync(handle: int) -> None:
        seen.append((os.path.samestat(os.fstat(handle), tmp_path.stat()), path.read_bytes() == before))

    monkeypatch.setattr(session_file.os, "fsync", fsync)
    write(path, num_records=3)
    assert seen == [(False, True), (True, False)]
    with SessionFile.open(path) as file:
        assert len(file.keys) == 3


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="cannot be written"):
        write(tmp_path / "nowhere" / "talk.pagoda")


def test_pages_of_something_else_are_refused_with_both_values() -> None:
    DESCRIPTION.check_is_of(IDENTITY)
    with pytest.raises(SessionError, match="format is 'bf16', and here it is 'int8'"):
        DESCRIPTION.check_is_of(IDENTITY._replace(format="int8"))


def test_broken_files_are_read_or_refused_by_name() -> None:
    command = [sys.executable, str(SCRIPT), "--mutations", str(MUTATIONS), "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{MUTATIONS} mutations" in done.stdout
