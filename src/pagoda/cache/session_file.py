"""A session as a file: what its pages are of, its conversation, and its pages as records of tiers.

    header | description, JSON | conversation: JSON, then tokens | records, back to back | table of the records

It is the same on every machine, and is written whole or not at all. Files come from anywhere, so nothing in them is
believed: the header must add up to the size of the file before anything is read, and every part has its checksum.
Knows neither caches nor models.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from io import FileIO
from pathlib import Path
from tempfile import mkstemp
from time import time
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_digest, xxh3_128_digest

from pagoda.cache.session_parts import (
    MOST_DESCRIPTION_NBYTES,
    Conversation,
    Description,
    conversation_bytes,
    description_json,
    read_conversation,
    read_description,
)
from pagoda.cache.tiers.record import (
    HEADER_NBYTES,
    NAME_NBYTES,
    NONCE_NBYTES,
    Bytes,
    Cipher,
    Record,
    read_header,
    read_record,
)
from pagoda.errors import PageRecordError, SessionError, SessionNotWrittenError

MAGIC = b"PGDS"
VERSION = 1
SUFFIX = ".pagoda"
PARTIAL_SUFFIX = ".partial"  # of a file that is being written
NEW_SECONDS = 60.0  # so old a file has been locked by whoever writes it
# Magic, version, whether the conversation is encrypted, 1 spare byte; bytes of the description, tokens, records, 4 more
# spare bytes; bytes of the conversation, of all records; checksums of description, conversation and table; the nonce.
_FIELDS = struct.Struct("<4sH?xIII4xQQ16s16s16s12s4x")
_CHECK_NBYTES = 8
FILE_HEADER_NBYTES = _FIELDS.size + _CHECK_NBYTES
_TABLE = np.dtype([("key", f"V{1 + NAME_NBYTES}"), ("spare", "V7"), ("offset", "<u8"), ("nbytes", "<u8")])


class Damage(NamedTuple):
    """A record that is not what it should be, and why."""

    key: bytes
    offset: int
    message: str


class _Header(NamedTuple):
    """What is written at the start of a file, and where everything is by that."""

    is_encrypted: bool
    description_nbytes: int
    num_tokens: int
    num_records: int
    conversation_nbytes: int
    records_nbytes: int
    description_checksum: bytes
    conversation_checksum: bytes
    table_checksum: bytes
    nonce: bytes

    @property
    def conversation_start(self) -> int:
        return FILE_HEADER_NBYTES + self.description_nbytes

    @property
    def records_start(self) -> int:
        return self.conversation_start + self.conversation_nbytes

    @property
    def table_start(self) -> int:
        return self.records_start + self.records_nbytes

    @property
    def table_nbytes(self) -> int:
        return self.num_records * _TABLE.itemsize

    @property
    def file_nbytes(self) -> int:
        return self.table_start + self.table_nbytes

    def packed(self) -> bytes:
        fields = _FIELDS.pack(MAGIC, VERSION, *self)
        return fields + xxh3_64_digest(fields)


def write_session(
    path: Path,
    description: Description,
    conversation: Conversation,
    records: Iterable[Bytes],
    cipher: Cipher | None = None,
    reserve: Callable[[int], None] = lambda _: None,
) -> int:
    """Write a session over one that is there; returns how many bytes it has.

    `records` are taken one at a time, already encrypted if they are to be; with a `cipher` the conversation is, too.
    The file grows by so many bytes after `reserve` has been called with them, which may raise SessionTooLargeError.
    After a crash there is the old file or the new one. Raises SessionError, which says what to do, if it fails.
    """
    try:
        handle, name = mkstemp(prefix=f".{path.name[:100]}.", suffix=PARTIAL_SUFFIX, dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            _mark_as_written(handle)
            nbytes = _write(_Growing(file, reserve), (description, conversation), records, cipher)
            file.flush()
            os.fsync(handle)
        Path(name).replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            Path(name).unlink()
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise
    return nbytes


def drop_abandoned(folder: Path) -> None:
    """Remove what was being written in `folder` when a process ended; what cannot be removed stays."""
    for path in folder.glob(f".*{PARTIAL_SUFFIX}"):
        with suppress(OSError), path.open("rb") as file:
            if time() - os.fstat(file.fileno()).st_mtime > NEW_SECONDS:
                flock(file, LOCK_EX | LOCK_NB)
                path.unlink()


def _mark_as_written(handle: int) -> None:
    """The lock goes with the process. Some file systems have none: what is left there stays."""
    with suppress(OSError):
        flock(handle, LOCK_EX | LOCK_NB)


class _Growing:
    """A file that is written from first to last, and asks before it grows."""

    def __init__(self, file: BinaryIO, reserve: Callable[[int], None]) -> None:
        self._file = file
        self._reserve = reserve
        self._nbytes = 0

    def write(self, content: Bytes) -> None:
        end = self._file.tell() + len(content)
        if end > self._nbytes:
            self._reserve(end - self._nbytes)
            self._nbytes = end
        self._file.write(content)

    def rewind(self) -> None:
        self._file.seek(0)


def _write(
    file: _Growing, said: tuple[Description, Conversation], records: Iterable[Bytes], cipher: Cipher | None
) -> int:
    description, conversation = description_json(said[0]), conversation_bytes(said[1])
    nonce = bytes(NONCE_NBYTES)
    if cipher is not None:
        nonce = cipher.new_nonce()
        conversation = cipher.encrypt(conversation, nonce, description)
    start = FILE_HEADER_NBYTES + len(description) + len(conversation)
    file.write(bytes(FILE_HEADER_NBYTES) + description + conversation)
    entries = []
    end = start
    for record in records:
        entries.append((read_header(record).key, b"", end, len(record)))
        file.write(record)
        end += len(record)
    table = np.array(entries, _TABLE).tobytes()
    file.write(table)
    header = _Header(
        *(cipher is not None, len(description), len(said[1].tokens), len(entries), len(conversation), end - start),
        *(xxh3_128_digest(description), xxh3_128_digest(conversation), xxh3_128_digest(table), nonce),
    )
    file.rewind()
    file.write(header.packed())
    return header.file_nbytes


@dataclass(frozen=True)
class SessionFile:
    """A session that is open: what it says, and its records, of which each is read and checked when it is asked for.

    Close it, or use it as a context manager. It may be read from several threads.
    """

    path: Path
    nbytes: int
    description: Description
    conversation: Conversation
    _file: FileIO
    _table: NDArray[np.void]
    _cipher: Cipher | None

    @classmethod
    def open(cls, path: Path, cipher: Cipher | None = None) -> Self:
        """Raises SessionError if it cannot be read, or is no whole session."""
        try:
            file = FileIO(path, opener=_open_at_once)
        except OSError as error:
            raise SessionError(f"{path} cannot be read: {error.strerror}.") from error
        try:
            return cls._read(path, file, cipher)
        except OSError as error:
            file.close()
            raise SessionError(f"{path} cannot be read: {error.strerror}.") from error
        except SessionError as error:
            file.close()
            raise SessionError(f"{path}: {error}") from error
        except BaseException:
            file.close()
            raise

    @classmethod
    def _read(cls, path: Path, file: FileIO, cipher: Cipher | None) -> Self:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise SessionError("It is no file.")
        header = _read_header(_pread(file, 0, min(FILE_HEADER_NBYTES, status.st_size)))
        if header.file_nbytes != status.st_size:
            raise SessionError(f"It has {status.st_size:,} bytes and says that it has {header.file_nbytes:,}.")
        if header.description_nbytes > MOST_DESCRIPTION_NBYTES:
            raise SessionError("Its description is longer than any.")
        content = _part(file, FILE_HEADER_NBYTES, header.description_nbytes, header.description_checksum)
        description = read_description(content)
        said = _part(file, header.conversation_start, header.conversation_nbytes, header.conversation_checksum)
        conversation = read_conversation(_decrypted(said, content, header, cipher), header.num_tokens)
        if description.num_held_tokens > header.num_tokens:
            raise SessionError("It is damaged: it has pages of more tokens than there are.")
        table = np.frombuffer(_part(file, header.table_start, header.table_nbytes, header.table_checksum), _TABLE)
        _check_table(table, header)
        return cls(path, status.st_size, description, conversation, file, table, cipher)

    @property
    def tokens(self) -> NDArray[np.int32]:
        return self.conversation.tokens

    @property
    def keys(self) -> list[bytes]:
        """Of its records, in the order in which they were written."""
        return [bytes(key) for key in self._table["key"]]

    @property
    def records_nbytes(self) -> int:
        return int(self._table["nbytes"].sum())

    def records(self) -> Iterator[Record]:
        """Each in turn, as `record` reads it."""
        return map(self.record, range(len(self._table)))

    def record(self, number: int) -> Record:
        """The record at a place of `keys`. Raises PageRecordError if it is not whole, undamaged and of this session."""
        entry = self._table[number]
        try:
            data = _pread(self._file, int(entry["offset"]), int(entry["nbytes"]))
        except (OSError, SessionError) as error:
            raise PageRecordError("length", f"it cannot be read: {error}") from error
        record = read_record(data, self._cipher)
        if record.header.key != bytes(entry["key"]):
            raise PageRecordError("name", "it is another one than the table says")
        if record.header.identity != self.description.identity.digest:
            raise PageRecordError("identity", "it is of something else than the session")
        return record

    def verify(self) -> list[Damage]:
        """The records that are not what they should be; all of them are read."""
        damages = []
        for number, entry in enumerate(self._table):
            try:
                self.record(number)
            except PageRecordError as error:
                damages.append(Damage(bytes(entry["key"]), int(entry["offset"]), str(error)))
        return damages

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_at_once(path: str, flags: int) -> int:
    """A pipe would keep whoever opens it waiting for its other end."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read_header(head: bytes) -> _Header:
    if len(head) < FILE_HEADER_NBYTES or head[: len(MAGIC)] != MAGIC:
        raise SessionError("It is no session; name a file that was saved as one.")
    _, version, *fields = _FIELDS.unpack_from(head)
    if version != VERSION:
        raise SessionError(f"It is of version {version}, and this Pagoda reads version {VERSION}.")
    if head[_FIELDS.size :] != xxh3_64_digest(head[: _FIELDS.size]):
        raise SessionError("Its header is damaged.")
    return _Header(*fields)


def _part(file: FileIO, start: int, nbytes: int, checksum: bytes) -> bytes:
    content = _pread(file, start, nbytes)
    if xxh3_128_digest(content) != checksum:
        raise SessionError("It is damaged.")
    return content


def _pread(file: FileIO, start: int, nbytes: int) -> bytes:
    """Exactly so many bytes: the size of the file was looked at, but others may cut it now."""
    content = os.pread(file.fileno(), nbytes, start)
    if len(content) == nbytes:
        return content
    pieces = [content]  # one call reads 2 GiB at most
    while pieces[-1]:
        start += len(pieces[-1])
        pieces.append(os.pread(file.fileno(), nbytes - sum(map(len, pieces)), start))
    content = b"".join(pieces)
    if len(content) != nbytes:
        raise SessionError("It has become shorter while it was read.")
    return content


def _decrypted(said: bytes, description: bytes, header: _Header, cipher: Cipher | None) -> bytes:
    if not header.is_encrypted:
        return said
    if cipher is None:
        raise SessionError("It is encrypted, and there is no key to read it with.")
    try:
        return cipher.decrypt(said, header.nonce, description)
    except PageRecordError as error:
        raise SessionError(f"It cannot be decrypted: {error}.") from error


def _check_table(table: NDArray[np.void], header: _Header) -> None:
    """Records lie back to back, each at least as long as its header, and no two have one key."""
    offsets, sizes = table["offset"].tolist(), table["nbytes"].tolist()
    end = header.records_start
    for offset, nbytes in zip(offsets, sizes, strict=True):
        if offset != end or nbytes < HEADER_NBYTES:
            raise SessionError("Its table is damaged.")
        end += nbytes
    if end != header.table_start or len(set(table["key"].tolist())) != len(table):
        raise SessionError("Its table is damaged.")


def _sync_folder(folder: Path) -> None:
    """So that a new name in it outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, error: OSError) -> SessionError:
    return SessionNotWrittenError(
        f"{path} cannot be written: {error.strerror}; give another place, or make room there."
    )
