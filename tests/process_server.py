"""What `processes.py` starts: imports what scripts of tests import, and then forks a child for each script it is sent.

It has one thread and has run nothing of what it imported: there is no pool of threads, no engine and no random number
that children could share. A child leaves `serve()` and is then as a new process would be, with the script as its
`__main__`. The server ends once nobody can send it anything any longer, and its children with it.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

IMPORTED = (
    "torch",
    "transformers.generation.utils",
    "transformers.models.llama.modeling_llama",
    "pagoda.kernels.native_recording",
    "pagoda.cache.eviction.lru",
    "pagoda.commands.serve",
    "pagoda.server.run",
    "pagoda.structured.compiler",
)
MOST_NBYTES = 1 << 20
NUM_DESCRIPTORS = 4


class Children:
    """Those that run: how each has ended is told to who waits for it."""

    def __init__(self) -> None:
        self.poll = select.poll()
        self._running: dict[int, tuple[int, int]] = {}  # by the descriptor of the process: its number, who waits

    def add(self, pid: int, status: int) -> None:
        descriptor = os.pidfd_open(pid)
        self._running[descriptor] = pid, status
        self.poll.register(descriptor, select.POLLIN)
        tell(status, pid)

    def reap(self, descriptor: int) -> None:
        pid, status = self._running.pop(descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        tell(status, code)
        self.poll.unregister(descriptor)
        for each in (descriptor, status):
            os.close(each)

    def end(self) -> None:
        for pid, _ in self._running.values():
            os.kill(pid, signal.SIGKILL)
        for descriptor in list(self._running):
            self.reap(descriptor)

    def forget(self) -> None:
        """In a child, whose they are not."""
        for descriptor, (_, status) in self._running.items():
            os.close(descriptor)
            os.close(status)


def tell(status: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits any longer
        os.write(status, str(number).encode())


def serve(requests: socket.socket) -> dict[str, Any]:
    """Returns in each child, with what is asked of it, and never in the server."""
    children = Children()
    children.poll.register(requests, select.POLLIN)
    while True:
        for descriptor, _ in children.poll.poll():
            if descriptor != requests.fileno():
                children.reap(descriptor)
                continue
            message, descriptors, *_ = socket.recv_fds(requests, MOST_NBYTES, NUM_DESCRIPTORS)
            if not message:
                children.end()
                sys.exit()
            status, *streams = descriptors
            pid = os.fork()
            if not pid:
                requests.close()
                children.forget()
                os.close(status)
                take(streams)
                return json.loads(message)
            children.add(pid, status)
            for each in streams:
                os.close(each)


def take(streams: list[int]) -> None:
    """What Python has made of the first three descriptors goes on with others behind them."""
    for number, each in enumerate(streams):
        os.dup2(each, number)
        os.close(each)


def become(asked: dict[str, Any]) -> ModuleType:
    """What a new process has of its own; returns its main module, which is empty."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    if asked["open_files"] is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (asked["open_files"],) * 2)
    # As `random` does by itself; torch begins with the same seed in every process.
    sys.modules["numpy"].random.seed()
    sys.argv = ["-c", *asked["arguments"]]
    sys.modules["__main__"] = ModuleType("__main__")
    return sys.modules["__main__"]


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # who started it waits for this, and then has no child
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[0] = ""  # as with `python -c`
    for name in IMPORTED:
        import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "only the thread that forks is there in the child"
    gc.freeze()  # no child goes through what was imported, nor copies it for that
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    exec(compile(asked["script"], "<string>", "exec"), vars(become(asked)))
