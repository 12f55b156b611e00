"""Which forms were found good or bad lately, so that the same one costs nothing when it comes again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from time import monotonic
from typing import NamedTuple

from pagoda.errors import StructuredOutputError
from pagoda.structured.lane import Step
from pagoda.structured.source import Source

MAX_GOOD = 256
MAX_BAD = 4096
BAD_SECONDS = 600.0


class _Bad(NamedTuple):
    message: str
    until: float


class Verdicts:
    """What outputs of good forms begin with, and why others were refused. Used by several threads."""

    def __init__(self) -> None:
        self._good: OrderedDict[bytes, Step] = OrderedDict()
        self._bad: OrderedDict[bytes, _Bad] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, source: Source) -> Step | None:
        """Raises StructuredOutputError for what was refused."""
        with self._lock:
            bad = self._bad.get(source.digest)
            if bad is not None and bad.until > monotonic():
                raise StructuredOutputError(bad.message)
            step = self._good.get(source.digest)
            if step is not None:
                self._good.move_to_end(source.digest)
            return step

    def accept(self, source: Source, step: Step) -> None:
        with self._lock:
            self._good[source.digest] = step
            if len(self._good) > MAX_GOOD:
                self._good.popitem(last=False)

    def refuse(self, source: Source, message: str) -> None:
        with self._lock:
            self._good.pop(source.digest, None)
            self._bad[source.digest] = _Bad(message, monotonic() + BAD_SECONDS)
            if len(self._bad) > MAX_BAD:
                self._bad.popitem(last=False)
