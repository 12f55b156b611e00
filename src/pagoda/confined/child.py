"""The child's side: limits itself, then runs one function after another until its parent goes.

Every limit is one that the kernel enforces, also on native code that never comes back to Python. Of the time that a
call takes, alarms of its own are the first to end it; the parent is the second.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from io import BufferedReader
from operator import attrgetter
from pathlib import Path
from struct import Struct
from typing import Any

LENGTH = Struct("<Q")
MAX_MESSAGE_LENGTH = 2000
STANDARD_INPUT, STANDARD_OUTPUT, STANDARD_ERROR = range(3)
# Each ends the process: the clock, the processor's time, the end of the parent, a wish.
ENDING_SIGNALS = (signal.SIGALRM, signal.SIGPROF, signal.SIGIO, signal.SIGTERM)


def main() -> None:
    """Serve the pipes that the process was started with; the last argument is the memory it may use, in bytes."""
    memory_nbytes = int(sys.argv[-1])
    _limit(memory_nbytes)
    # What a function prints must not be taken for an answer, nor may it read requests.
    requests, replies = os.dup(STANDARD_INPUT), os.dup(STANDARD_OUTPUT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), STANDARD_INPUT)
    os.dup2(STANDARD_ERROR, STANDARD_OUTPUT)
    worker = Worker(memory_nbytes)
    with open(requests, "rb") as reader:  # noqa: PTH123
        while (request := _request(reader)) is not None:
            method, function, argument, seconds, wall_seconds = pickle.loads(request)  # noqa: S301 - the parent's own
            with _alarms(requests, seconds, wall_seconds):
                reply = worker.reply(method, function, argument)
            _send(replies, reply)


class Worker:
    """Runs functions, after their preparation if there is one."""

    def __init__(self, memory_nbytes: int) -> None:
        self._memory_nbytes = memory_nbytes
        self._least_nbytes = 0
        self._prepared: tuple[Any, ...] = ()

    def reply(self, method: str, function: str, argument: Any) -> bytes:
        """As JSON: what kind of reply it is, what came of it, and whether this process had better end."""
        run = {"call": self._call, "prepare": self._prepare}[method]
        try:
            kind, value = "result", run(function, argument)
        except MemoryError:  # who knows what is left undone
            raise
        except Exception as error:
            kind, value = "error", {"kind": type(error).__name__, "message": str(error)[:MAX_MESSAGE_LENGTH]}
        return json.dumps((kind, value, self._is_worn)).encode()

    @property
    def _is_worn(self) -> bool:
        """Whether half of the memory for calls is gone: what one has not given back, the next one lacks."""
        return _used_nbytes() > (self._memory_nbytes + self._least_nbytes) // 2

    def _call(self, function: str, argument: Any) -> Any:
        return _found(function)(*self._prepared, argument)

    def _prepare(self, function: str, argument: Any) -> None:
        self._prepared = (_found(function)(argument),)
        self._least_nbytes = _used_nbytes()


def _found(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    found: Callable[..., Any] = attrgetter(name)(import_module(module))
    return found


def _limit(memory_nbytes: int) -> None:
    for limit, most in ((resource.RLIMIT_AS, memory_nbytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(limit, (most, most))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for each in ENDING_SIGNALS:  # whatever was inherited
        signal.signal(each, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _request(reader: BufferedReader) -> bytes | None:
    """The next one; None when the parent has gone."""
    length = reader.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    (nbytes,) = LENGTH.unpack(length)
    request = reader.read(nbytes)
    return request if len(request) == nbytes else None


@contextmanager
def _alarms(requests: int, seconds: float, wall_seconds: float) -> Iterator[None]:
    """End the process when the time is used up, or when the parent closes its end of `requests`."""
    flags = fcntl.fcntl(requests, fcntl.F_GETFL)
    fcntl.fcntl(requests, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(requests, fcntl.F_SETFL, flags | os.O_ASYNC)
    if select.select([requests], [], [], 0)[0]:  # nothing is sent before the reply: it was closed before now
        sys.exit()
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    fcntl.fcntl(requests, fcntl.F_SETFL, flags)


def _used_nbytes() -> int:
    """Of address space."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def _send(replies: int, reply: bytes) -> None:
    unsent = memoryview(LENGTH.pack(len(reply)) + reply)
    while unsent:
        unsent = unsent[os.write(replies, unsent) :]
