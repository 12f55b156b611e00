"""The folder of sessions: what is being written counts, and keeps nobody else waiting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pagoda.errors import SessionTooLargeError
from pagoda.server.ground.options import ServerOptions
from pagoda.server.own.session_folder import SessionFolder


def make_folder(path: Path) -> SessionFolder:
    return SessionFolder(path, ServerOptions(max_session_bytes=100, max_session_bytes_per_tenant=60))


def fail_after(reserve: Callable[[int], None], nbytes: int) -> None:
    reserve(nbytes)
    raise OSError("disk")


def test_what_is_being_written_counts_and_nobody_waits_for_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    mine, other, theirs = folder.path("me", "a"), folder.path("me", "b"), folder.path("they", "a")
    with folder.room(mine) as reserve:
        reserve(50)
        with pytest.raises(SessionTooLargeError), folder.room(other) as reserve_other:
            reserve_other(11)
        with folder.room(theirs) as reserve_theirs:
            reserve_theirs(50)
            with pytest.raises(SessionTooLargeError):
                reserve(1)  # of what all may have
            theirs.write_bytes(bytes(20))
        reserve(10)
        mine.write_bytes(bytes(60))
    assert folder.all("me") == [mine]
    with pytest.raises(SessionTooLargeError), folder.room(theirs) as reserve:
        reserve(21)  # beside the one that it replaces


def test_a_write_that_fails_gives_its_room_back(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    path = folder.path("me", "a")
    with pytest.raises(OSError, match="disk"), folder.room(path) as reserve:
        fail_after(reserve, 60)
    with folder.room(path) as reserve:
        reserve(60)


def test_what_others_removed_leaves_room(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    path = folder.path("me", "a")
    with folder.room(path) as reserve:
        reserve(60)
        path.write_bytes(bytes(60))
    path.unlink()
    with folder.room(path) as reserve:
        reserve(60)
