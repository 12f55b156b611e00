"""`pagoda serve` as a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading

from processes import COMMAND, Forked


class Process:
    """It, or a `script` that makes it something else, with so many open files at most.

    Forked where imports are done, unless it `starts_anew`, as it is started by people.
    """

    def __init__(
        self,
        port: int = 0,
        *arguments: str,
        ulimit: int | None = None,
        script: str = COMMAND,
        starts_anew: bool = False,
    ) -> None:
        options = ["serve", "--port", str(port), *arguments, "--kv-cache-memory-bytes", "32MiB", "--num-threads", "1"]
        self.process: Forked | subprocess.Popen[str]
        if starts_anew:
            command = [sys.executable, "-m", "pagoda.cli", *options]
            self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        else:
            self.process = Forked(*options, script=script, stderr=subprocess.PIPE, open_files=ulimit)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line.startswith("Serving"), line + self.process.stderr.read()
        self.url = line.split()[-1]
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr))
        self._reader.start()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.join()

    def join(self) -> None:
        """Read what it still has written."""
        self._reader.join()
        self.process.stderr.close()
