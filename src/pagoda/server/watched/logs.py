"""Writes log lines as text for people, or as JSON for programs, on a thread of its own.

Standard error may be a pipe whose reader stands still: then lines are lost, and nobody waits.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from contextlib import suppress
from queue import Full, Queue
from time import monotonic, sleep
from typing import Any, TextIO

import orjson

SECONDS_BETWEEN_WARNINGS = 10.0
MOST_LINES = 10_000  # that wait to be written
FLUSH_SECONDS = 1.0
ALWAYS_TOLD = ("pagoda.access", "pagoda.prewarm")
PLAIN = re.compile(r"""[^\s'"=\\]*""")


class TextFormatter(logging.Formatter):
    """`INFO: request path=/v1/models status=200`. Values that would look like something else are quoted."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{record.levelname}: {super().format(record)}"
        return " ".join([line, *(f"{name}={_shown(value)}" for name, value in _fields(record).items())])


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, message, and the fields of the record."""

    def format(self, record: logging.LogRecord) -> str:
        value = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            value["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(value, default=str).decode()


class Seldom:
    """Warnings that clients can cause at will: one in a while, which says how many were left out."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._next = 0.0
        self._num_left_out = 0

    def warning(self, message: str) -> None:
        now = monotonic()
        if now < self._next:
            self._num_left_out += 1
            return
        more = f" ({self._num_left_out} such lines were left out.)" if self._num_left_out else ""
        self._logger.warning("%s%s", message, more)
        self._next, self._num_left_out = now + SECONDS_BETWEEN_WARNINGS, 0


class Background(logging.Handler):
    """Writes lines to `stream` beside whoever logs; of those that cannot be written, the last ones are lost."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: Queue[str] = Queue(MOST_LINES)
        threading.Thread(target=self._write, name="pagoda-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Full):
            self._lines.put_nowait(self.format(record) + "\n")

    def flush(self) -> None:
        """Wait until all is written, if that goes on."""
        deadline = monotonic() + FLUSH_SECONDS
        while self._lines.unfinished_tasks and monotonic() < deadline:
            sleep(0.005)

    def _write(self) -> None:
        while True:
            with suppress(OSError):
                self._stream.write(self._lines.get())
            self._lines.task_done()


def set_up(log_format: str, level: int) -> None:
    """Write all log lines to standard error; those of `ALWAYS_TOLD` whatever the level."""
    handler = Background(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ALWAYS_TOLD:
        logging.getLogger(name).setLevel(logging.INFO)


def _shown(value: Any) -> str:
    text = str(value)
    return text if PLAIN.fullmatch(text) and text.isprintable() else ascii(text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields
