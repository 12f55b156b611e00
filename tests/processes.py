"""Processes that begin where imports are done: children of one that has imported all of Pagoda and run nothing.

A new process spends nearly all its time on imports of torch and transformers. `Forked` and `run()` are used like
`subprocess.Popen` and `subprocess.run()` with `[sys.executable, "-c", script, *arguments]`. A script ends like any
other: the interpreter sees what it raises, joins its threads, calls what is to be called at exit and takes itself down.

What is tested of a start itself needs a real process: imports, closed streams, variables that are read while torch is
imported, how memory is had. Each process of tests has one server of these, which ends with it, however that ends.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

COMMAND = "import sys\nfrom pagoda.cli import main\nsys.exit(main())"
SERVER = Path(__file__).parent / "process_server.py"


class Forked:
    """A `script`, or else the command `pagoda`. It has no input; what it writes to `PIPE` is read as text."""

    def __init__(
        self,
        *arguments: str,
        script: str = COMMAND,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        environment: Mapping[str, str] | None = None,
        open_files: int | None = None,
    ) -> None:
        self.returncode: int | None = None
        self.stdout, output = _stream(stdout, 1)
        self.stderr, errors = _stream(stderr, 2)
        self._status, status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = {
            "script": script,
            "arguments": arguments,
            "environment": dict(os.environ if environment is None else environment),
            "folder": str(Path.cwd()),
            "open_files": open_files,
        }
        with status, Path(os.devnull).open() as nothing:
            descriptors = [status.fileno(), nothing.fileno(), output, errors]
            socket.send_fds(_server(), [json.dumps(asked).encode()], descriptors)
        for made, descriptor in ((self.stdout, output), (self.stderr, errors)):
            if made is not None:
                os.close(descriptor)
        self.pid = int(self._status.recv(64))

    def poll(self) -> int | None:
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
        return status

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._status.settimeout(timeout)
            try:
                self.returncode = int(self._status.recv(64))
            except (BlockingIOError, TimeoutError):
                return None
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    *arguments: str, script: str = COMMAND, environment: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """The end of one, and all that it has written."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = Forked(*arguments, script=script, stdout=output, stderr=errors, environment=environment)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
            process.wait()
        for file in (output, errors):
            file.seek(0)
        return subprocess.CompletedProcess(list(arguments), status, output.read(), errors.read())


def _stream(wanted: int | IO[Any] | None, own: int) -> tuple[IO[str] | None, int]:
    """What is read of it here, if anything, and where the child writes."""
    if wanted is None:
        return None, own
    if wanted == subprocess.PIPE:
        read, write = os.pipe()
        return os.fdopen(read, encoding="utf-8"), write
    return None, wanted.fileno()


@cache
def _server() -> socket.socket:
    """It ends once this is closed, by whatever end of this process. It is no child: tests count those, and end them."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, str(SERVER), str(its.fileno())]
        # Without the pool of threads that numpy would begin when it is imported.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        subprocess.run(command, stdin=subprocess.DEVNULL, pass_fds=[its.fileno()], env=environment, check=True)
    atexit.register(mine.close)
    return mine
