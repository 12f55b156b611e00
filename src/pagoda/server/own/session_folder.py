"""Keeps the sessions of tenants as files: each tenant has a folder of its own, and no name leads out of it.

Bytes are bounded, of each tenant and of all: what is there is counted, and what is being written. What a crash has left
of a write is removed. Knows neither HTTP nor models. Calls may take long; they come from several threads.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from pagoda.cache.session_file import SUFFIX, drop_abandoned
from pagoda.errors import ConfigError, HttpError, SessionTooLargeError
from pagoda.server.ground.options import ServerOptions

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
MOST_SESSIONS = 1000  # of one tenant


class SessionFolder:
    """The folder that `options` name. Raises ConfigError if it cannot be made."""

    def __init__(self, folder: Path, options: ServerOptions) -> None:
        self._folder = folder.expanduser()
        self._most_nbytes = options.max_session_bytes
        self._most_nbytes_of_one = options.max_session_bytes_per_tenant
        self._lock = threading.Lock()
        self._held = dict[Path, int]()  # bytes of whole sessions
        self._written = Counter[Path]()  # bytes that are being written
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for each in self._folder.iterdir():
                drop_abandoned(each)
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
            return sorted(_sessions(self._of(tenant)))

    @contextmanager
    def room(self, path: Path) -> Iterator[Callable[[int], None]]:
        """What is to be called with so many more bytes before they are written for `path`.

        It raises SessionTooLargeError if there is no room for them. Raises HttpError 413 if there is room for no more
        sessions, and 507 if the folder cannot be used.
        """
        own = path.parent
        with self._lock:
            self._count(path)
        taken = 0

        def reserve(nbytes: int) -> None:
            nonlocal taken
            with self._lock:
                self._check_room(own, nbytes)
                self._written[own] += nbytes
                taken += nbytes

        try:
            yield reserve
        finally:
            with self._lock, suppress(OSError):
                self._written[own] -= taken
                self._held[own] = _nbytes(own)

    def _count(self, path: Path) -> None:
        """What whole sessions take now, since others than this process may have removed some."""
        own = path.parent
        with _used():
            for folder in (self._folder, own):  # the mode is of the last of several that are made
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folders = [each for each in self._folder.iterdir() if each.is_dir()]
            for folder in folders:
                drop_abandoned(folder)
            self._held = {folder: _nbytes(folder) for folder in folders}
            num_sessions = sum(each != path for each in _sessions(own))
        if num_sessions >= MOST_SESSIONS:
            raise _full(f"You have {MOST_SESSIONS} sessions; delete some.")

    def _check_room(self, own: Path, nbytes: int) -> None:
        left = min(
            self._most_nbytes - sum(self._held.values()) - self._written.total(),
            self._most_nbytes_of_one - self._held.get(own, 0) - self._written[own],
        )
        if nbytes > left:
            raise SessionTooLargeError("There is no room for it.")

    def delete(self, tenant: str, name: str) -> None:
        """Raises HttpError 404 if there is none, and 507 if it cannot be deleted."""
        path = self.find(tenant, name)
        with _used(), suppress(FileNotFoundError):
            path.unlink()

    def _of(self, tenant: str) -> Path:
        """A tenant may be called anything."""
        return self._folder / blake2b(tenant.encode(), digest_size=16).hexdigest()


@contextmanager
def _used() -> Iterator[None]:
    """Tell clients what the system says of the folder, and not where it lies."""
    try:
        yield
    except OSError as error:
        raise HttpError(507, f"The folder of sessions cannot be used: {error.strerror}.", code="session_dir") from error


def _sessions(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.suffix == SUFFIX and path.is_file()]
    except FileNotFoundError:
        return []


def _nbytes(folder: Path) -> int:
    total = 0
    for path in _sessions(folder):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _full(message: str) -> HttpError:
    return HttpError(413, message, code="session_quota")
