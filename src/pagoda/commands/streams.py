"""Standard input, output and error as whoever started the command left them: closed, full, or a pipe without reader."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

UNWRITABLE = (errno.EBADF, errno.EIO, errno.ENOSPC)


class _Lossy(io.FileIO):
    """A file that loses what cannot be written to it."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data))


def keep_usable() -> None:
    """Give what is closed its number back, which the next file would get, and let nothing fail for want of a report."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free; to write there is still an error
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is sys.__stderr__:
        raw = _Lossy(2, "w", closefd=False)
        sys.stderr = io.TextIOWrapper(raw, errors="backslashreplace", line_buffering=True, write_through=True)


def forget_output() -> None:
    """Keep the interpreter from writing at exit what could not be written before."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
