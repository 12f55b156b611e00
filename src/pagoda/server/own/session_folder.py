"""Keeps the sessions of tenants as files: each tenant has a folder of its own, and no name leads out of it.

Bytes are bounded, of each tenant and of all: what is there is counted, files that a crash has left included. Knows
neither HTTP nor models. Calls may take long; they come from several threads.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from time import time

from pagoda.cache.session_file import PARTIAL_SUFFIX, SUFFIX
from pagoda.errors import ConfigError, HttpError
from pagoda.server.ground.options import ServerOptions

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
MOST_SESSIONS = 1000  # of one tenant
ABANDONED_SECONDS = 3600.0


class SessionFolder:
    """The folder that `options` name. Raises ConfigError if it cannot be made."""

    def __init__(self, folder: Path, options: ServerOptions) -> None:
        self._folder = folder.expanduser()
        self._most_nbytes = options.max_session_bytes
        self._most_nbytes_of_one = options.max_session_bytes_per_tenant
        self._saving = threading.Lock()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._drop_abandoned()
        except OSError as error:
            raise ConfigError(f"session_dir {folder} cannot be used: {error.strerror}; give another folder.") from error

    def path(self, tenant: str, name: str) -> Path:
        """Where a session of that name is, or would be. Raises HttpError for what is no name."""
        if not re.fullmatch(NAME_PATTERN, name):
            raise HttpError(
                400,
                "A session's name has up to 100 letters, digits, dots, hyphens and underscores, and begins with one of "
                "the first two.",
                param="name",
            )
        return self._of(tenant) / f"{name}{SUFFIX}"

    def find(self, tenant: str, name: str) -> Path:
        """Raises HttpError 404 if there is none."""
        path = self.path(tenant, name)
        if not path.is_file():
            raise HttpError(404, f"There is no session {name!r}.", param="name", code="session_not_found")
        return path

    def all(self, tenant: str) -> list[Path]:
        """Of one tenant, by name. Raises HttpError 507 if the folder cannot be read."""
        with _used():
            return sorted(path for path in _files(self._of(tenant)) if path.suffix == SUFFIX)

    @contextmanager
    def room(self, path: Path) -> Iterator[int]:
        """How many bytes may be written to `path`, while nobody else adds any.

        Raises HttpError 413 if there is no room, and 507 if the folder cannot be used.
        """
        with self._saving:
            yield self._left_for(path)

    def _left_for(self, path: Path) -> int:
        own = path.parent
        with _used():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            own.mkdir(mode=0o700, exist_ok=True)
            num_sessions = sum(each.suffix == SUFFIX and each != path for each in _files(own))
            left_to_all = self._most_nbytes - sum(_nbytes(each) for each in self._folder.iterdir() if each.is_dir())
            left = min(self._most_nbytes_of_one - _nbytes(own), left_to_all)
        if num_sessions >= MOST_SESSIONS:
            raise _full(f"You have {MOST_SESSIONS} sessions; delete some.")
        if left <= 0:
            raise _full("There is no room for sessions; delete some.")
        return left

    def delete(self, tenant: str, name: str) -> None:
        """Raises HttpError 404 if there is none, and 507 if it cannot be deleted."""
        path = self.find(tenant, name)
        with _used(), suppress(FileNotFoundError):
            path.unlink()

    def _of(self, tenant: str) -> Path:
        """A tenant may be called anything."""
        return self._folder / blake2b(tenant.encode(), digest_size=16).hexdigest()

    def _drop_abandoned(self) -> None:
        """What was being written when a process ended."""
        for path in self._folder.glob(f"*/.*{PARTIAL_SUFFIX}"):
            with suppress(OSError):
                if time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()


@contextmanager
def _used() -> Iterator[None]:
    """Tell clients what the system says of the folder, and not where it lies."""
    try:
        yield
    except OSError as error:
        raise HttpError(507, f"The folder of sessions cannot be used: {error.strerror}.", code="session_dir") from error


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_file()]
    except FileNotFoundError:
        return []


def _nbytes(folder: Path) -> int:
    total = 0
    for path in _files(folder):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _full(message: str) -> HttpError:
    return HttpError(413, message, code="session_quota")
