"""One child process, the pipes to it, and why it ended. Knows nothing of turns and of who wants what."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGALRM, SIGKILL, SIGPROF
from struct import Struct
from typing import IO, Any, NamedTuple

from pagoda.confined.errors import (
    ConfinedError,
    CrashedError,
    FunctionError,
    KilledError,
    NotReadyError,
    TooLargeResultError,
    TooMuchMemoryError,
    TooSlowError,
)
from pagoda.machine import processor_seconds

POLL_SECONDS = 0.05
READ_NBYTES = 1 << 16
# What takes longer on a processor has it only when others need it less.
FAIR_SECONDS = 0.15
NICENESS = 10
KEPT_COMPLAINT_NBYTES = 4096
MAX_MESSAGE_LENGTH = 300
LENGTH = Struct("<Q")
# What the runtimes of Rust, C++ and Python say when memory is refused.
MEMORY_COMPLAINTS = ("memory allocation of", "bad_alloc", "MemoryError", "out of memory")
# The child runs without what the environment and the working directory would add to Python, and without their secrets.
BOOTSTRAP = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from pagoda.confined.child import main; main()"
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "LANG", "LC_ALL")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


_spent = threading.local()


def seconds_in_children() -> float:
    """What the children that this thread has asked have had of processors for its requests."""
    seconds: float = getattr(_spent, "seconds", 0.0)
    return seconds


class Reply(NamedTuple):
    kind: str
    value: Any
    is_last: bool

    def result(self) -> Any:
        if self.kind == "error":
            raise FunctionError(self.value["kind"], self.value["message"])
        return self.value


class Child:
    """A process that runs `confined_child`, and the pipes to it. One thread at a time uses it, any may kill it."""

    def __init__(self, memory_nbytes: int) -> None:
        held, self._lifeline = os.pipe()
        try:
            self._process = _started(memory_nbytes, held)
        except OSError as error:
            os.close(self._lifeline)
            raise NotReadyError(f"another process could not be started: {error}") from error
        finally:
            os.close(held)
        self.is_worn = False
        self.is_prepared = False
        self.may_give_way = False
        self._busy_from: float | None = None
        self._said = bytearray()
        self._lock = threading.Lock()
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)

    @property
    def _pipes(self) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        return process.stdin, process.stdout, process.stderr

    @property
    def is_alive(self) -> bool:
        with self._lock:
            return self._process.poll() is None

    def ask(self, request: bytes, most_nbytes: int, check: Callable[[], None]) -> Reply:
        """The reply to `request`. `check` is called again and again meanwhile, to raise. EOFError if the child ends."""
        begun = processor_seconds(self._process.pid)
        try:
            return self._ask(request, most_nbytes, check)
        finally:
            took = processor_seconds(self._process.pid) - begun
            _spent.seconds = seconds_in_children() + max(took, 0.0)

    def _ask(self, request: bytes, most_nbytes: int, check: Callable[[], None]) -> Reply:
        self._said.clear()
        self._busy_from = None
        unsent, reply = memoryview(LENGTH.pack(len(request)) + request), bytearray()
        requests, replies, complaints = (pipe.fileno() for pipe in self._pipes)
        with selectors.DefaultSelector() as selector:
            selector.register(requests, selectors.EVENT_WRITE)
            selector.register(replies, selectors.EVENT_READ)
            selector.register(complaints, selectors.EVENT_READ)
            while not _is_complete(reply, most_nbytes):
                check()
                events = selector.select(POLL_SECONDS)
                if not events:
                    self._give_way()
                for key, _ in events:
                    if key.fd == requests:
                        unsent = unsent[_written(requests, unsent) :]
                        if not unsent:
                            selector.unregister(requests)
                    elif key.fd == replies:
                        reply += _read(replies)
                    elif not self._listen(complaints):
                        selector.unregister(complaints)
        read = _parsed(reply[LENGTH.size :])
        self.is_worn = self.is_worn or read.is_last
        return read

    def _give_way(self) -> None:
        """To whatever else runs, if this call has had its share of a processor. No other should be made here then."""
        seconds = processor_seconds(self._process.pid)
        self._busy_from = seconds if self._busy_from is None else self._busy_from
        if self.may_give_way and not self.is_worn and seconds - self._busy_from > FAIR_SECONDS:
            with suppress(OSError):  # it may have ended
                os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)
            self.is_worn = True

    def _listen(self, complaints: int) -> bool:
        """Keep the end of what the child says on stderr; False when it says no more."""
        try:
            said = os.read(complaints, READ_NBYTES)
        except BlockingIOError:
            return False
        self._said += said
        del self._said[:-KEPT_COMPLAINT_NBYTES]
        return bool(said)

    def cause_of_death(self, seconds: float) -> ConfinedError:
        """Of a child that has closed its pipes."""
        self.kill()
        self._listen(self._pipes[2].fileno())
        said = self._said.decode(errors="replace")
        signal = -self._process.returncode
        if signal in (SIGPROF, SIGALRM):
            return TooSlowError(f"took longer than {seconds:g} s")
        if signal == SIGKILL:
            return KilledError("was killed by the system, which may lack memory")
        if any(complaint in said for complaint in MEMORY_COMPLAINTS):
            return TooMuchMemoryError("took too much memory")
        last = said.strip().splitlines()[-1:] or [f"it ended with {self._process.returncode}"]
        return CrashedError(f"crashed: {last[0][:MAX_MESSAGE_LENGTH]}")

    def kill(self) -> None:
        with self._lock:
            self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """By who uses it: nobody else may close the pipes."""
        self.kill()
        self._close()

    def disown(self) -> None:
        """In a process that was forked: what it holds of the pipes would hide the end of its parent from the child."""
        self._process.returncode = 0
        self._close()

    def _close(self) -> None:
        os.close(self._lifeline)
        for pipe in self._pipes:
            pipe.close()


def _started(memory_nbytes: int, lifeline: int) -> subprocess.Popen[bytes]:
    """The child holds one end of a pipe through which nothing ever comes: it ends when the other end is closed."""
    paths = json.dumps([str(Path(path).absolute()) for path in sys.path])
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", "-B", "-c", BOOTSTRAP, paths, str(memory_nbytes), str(lifeline)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pass_fds=(lifeline,),
        cwd="/",
        env=kept | ENVIRONMENT,
        start_new_session=True,  # out of reach of the terminal's signals
    )


def _is_complete(reply: bytearray, most_nbytes: int) -> bool:
    if len(reply) < LENGTH.size:
        return False
    (nbytes,) = LENGTH.unpack_from(reply)
    if nbytes > most_nbytes:
        raise TooLargeResultError(f"came to more than {most_nbytes} bytes")
    return len(reply) >= LENGTH.size + int(nbytes)


def _written(to_child: int, unsent: memoryview) -> int:
    try:
        return os.write(to_child, unsent)
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        raise EOFError from None


def _read(from_child: int) -> bytes:
    read = os.read(from_child, READ_NBYTES)
    if not read:
        raise EOFError
    return read


def _parsed(reply: bytearray) -> Reply:
    """Of a child that may say anything."""
    try:
        read = Reply(*json.loads(reply))
        if read.kind == "error":
            read = read._replace(value={name: str(read.value[name]) for name in ("kind", "message")})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CrashedError("gave an answer that cannot be read") from error
    return read
