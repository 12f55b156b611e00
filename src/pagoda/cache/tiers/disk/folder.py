"""The folder that a log of segments lies in: its files by name, of which version it is, and who writes in it.

One process writes. The kernel takes the lock from one that has died.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path

from pagoda.errors import ConfigError, TierError

VERSION = 1
VERSION_FILE = "version"
LOCK_FILE = "lock"
_VERSION_TEXT = f"pagoda pages, version {VERSION}\n"
_SEGMENT_NAME = re.compile(r"segment-(\d{8,12})\.log")
# What every folder holds beside its segments.
OVERHEAD_NBYTES = len(_VERSION_TEXT)


class Folder:
    """A folder of this version. Methods raise OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @classmethod
    def open(cls, path: Path) -> Folder:
        """Makes the folder if there is none. Raises ConfigError or TierError."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            return cls._checked(path)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"{path} is no folder; name a folder, or one that can be made.") from None
        except OSError as error:
            raise TierError(
                f"The folder {path} cannot be used: {error.strerror}; name one that this user may read and write."
            ) from error

    @classmethod
    def existing(cls, path: Path) -> Folder:
        """Raises ConfigError or TierError, also if there is no such folder, or it holds no pages."""
        if not os.path.isfile(path / VERSION_FILE):  # noqa: PTH113 -- False, too, where it may not be asked
            raise ConfigError(f"{path} is no folder of stored pages that can be read; name one that `--kv-disk` named.")
        return cls.open(path)

    @classmethod
    def _checked(cls, path: Path) -> Folder:
        folder = cls(path)
        try:
            with (path / VERSION_FILE).open("rb") as file:
                text = file.read(len(_VERSION_TEXT) + 1).decode(errors="replace")
        except FileNotFoundError:
            text = folder._begin()
        if text != _VERSION_TEXT:
            raise TierError(
                f"The folder {path} is of another version of Pagoda ({text.strip()[:40]!r}, and this one has "
                f"{_VERSION_TEXT.strip()!r}); name another folder, or delete this one."
            )
        return folder

    def _begin(self) -> str:
        """Say of which version the folder is, whole or not at all."""
        if self.segments():
            return ""  # of a folder that was not made like this
        draft = self.path / f"{VERSION_FILE}.{os.getpid()}"
        try:
            draft.write_text(_VERSION_TEXT)
            draft.replace(self.path / VERSION_FILE)
        finally:
            draft.unlink(missing_ok=True)
        return _VERSION_TEXT

    def lock(self) -> bool:
        """Become the process that writes, unless there is another."""
        descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._lock = descriptor
        return True

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def segment(self, number: int) -> Path:
        return self.path / f"segment-{number:08d}.log"

    def segments(self) -> list[int]:
        """The numbers of all segments, in the order in which they were written."""
        with os.scandir(self.path) as entries:
            names = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        numbers = {int(match[1]) for match in map(_SEGMENT_NAME.fullmatch, names) if match}
        return sorted(number for number in numbers if self.segment(number).name in names)

    def sync(self) -> None:
        """Make sure that what was made and removed stays so."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, number: int) -> None:
        with suppress(FileNotFoundError):
            self.segment(number).unlink()
