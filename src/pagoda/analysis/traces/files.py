"""The lines of a trace file, numbered as an editor numbers them, whether it is compressed or not.

Knows bytes and text; what a line means is for others to say.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pagoda.errors import ConfigError, TraceError

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
MARK = b"\xef\xbb\xbf"  # with which some programs begin UTF-8
OTHER_MARKS = (b"\xff\xfe", b"\xfe\xff")


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Every line that is not blank. Raises ConfigError for what cannot be opened, TraceError where it breaks off."""
    number = 0
    with _opened(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(MARK) if number == 1 else line
                if text := text.strip():
                    yield number, text
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TraceError(f"{path} is damaged after line {number}: {error}; copy it again.") from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error


def _opened(path: Path) -> BinaryIO:
    try:
        with path.open("rb") as file:
            begin = file.read(4)
        if begin.startswith(ZSTD):
            raise ConfigError(f"{path} is compressed with zstd; unpack it, or compress it with gzip.")
        if begin.startswith(OTHER_MARKS):
            raise ConfigError(f"{path} is UTF-16; save it as UTF-8.")
        return gzip.open(path, "rb") if begin.startswith(GZIP) else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
