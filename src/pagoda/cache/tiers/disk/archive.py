"""Records in one file that can be carried elsewhere: a header, and then the records, back to back.

A file may come from anywhere: nothing of it is believed that is not proven.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pagoda.cache.tiers.record import HEADER_NBYTES, read_header
from pagoda.errors import ConfigError, PageRecordError, TierError

VERSION = 1
_HEADER = struct.Struct("<8sI20x")
_MAGIC = b"PAGODAKV"


def write_archive(file: Path, records: Iterable[memoryview]) -> int:
    """Whole, or not at all; how many records. Raises OSError."""
    draft = file.with_name(f"{file.name}.{os.getpid()}.part")
    num_records = 0
    try:
        with draft.open("xb") as target:
            target.write(_HEADER.pack(_MAGIC, VERSION))
            for record in records:
                target.write(record)
                num_records += 1
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    return num_records


def read_archive(file: Path) -> Iterator[memoryview]:
    """Its records, whose bytes are not checked yet, up to the first that has no good header.

    Raises ConfigError if it is no such file, TierError where it cannot be read on, and OSError.
    """
    with file.open("rb") as source:
        nbytes = os.fstat(source.fileno()).st_size
        _check_header(file, source.read(_HEADER.size))
        while (start := source.tell()) < nbytes:
            yield _next(source, start, nbytes)


def _check_header(file: Path, data: bytes) -> None:
    magic, version = _HEADER.unpack(data) if len(data) == _HEADER.size else (b"", 0)
    if magic != _MAGIC:
        raise ConfigError(f"{file} is no file that `pagoda kv export` has written; name one that is.")
    if version != VERSION:
        raise ConfigError(
            f"{file} is of version {version}, and this Pagoda reads version {VERSION}; export it again with this one."
        )


def _next(source: BinaryIO, start: int, nbytes: int) -> memoryview:
    """The record at `start`; what it says of its length is not asked for where the file ends before."""
    head = source.read(HEADER_NBYTES)
    try:
        header = read_header(head)
    except PageRecordError as error:
        raise TierError(f"From byte {start:,} on it cannot be read ({error}); export it again.") from error
    if start + header.record_nbytes > nbytes:
        raise TierError(f"It ends within the record at byte {start:,}; copy it again.")
    return memoryview(head + source.read(header.payload_nbytes))
