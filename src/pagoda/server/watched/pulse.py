"""Tells whether what serves requests still moves: the backend between its steps, the threads that read prompts."""

from __future__ import annotations

from concurrent.futures import Future
from time import monotonic

from pagoda.server.asked.reader import Reader
from pagoda.server.backend.base import Backend

SILENT_SECONDS = 60.0  # a step of a large model on few cores may take many of them


class Pulse:
    """Asks the backend for a sign whenever somebody wants to know, and remembers since when it owes one."""

    def __init__(self, backend: Backend, reader: Reader) -> None:
        self._backend = backend
        self._reader = reader
        self._sign: Future[None] | None = None
        self._asked = 0.0

    @property
    def trouble(self) -> str | None:
        """What does not move, and for how long; None if all does."""
        if seconds := self._reader.stuck_seconds:
            return f"Prompts have not been read for {seconds:.0f} s, and others wait."
        if (seconds := self._silent_seconds()) > SILENT_SECONDS:
            return f"The engine's step has not come back for {seconds:.0f} s."
        return None

    def _silent_seconds(self) -> float:
        if self._sign is None or self._sign.done():
            self._asked = monotonic()
            self._sign = self._backend.ping()
        return monotonic() - self._asked
