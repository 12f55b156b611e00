"""Asks a confined child what may come next, for many sequences, so that the engine waits for none that takes long.

A grammar that was quick to compile may take any time and memory later. It then ends for its own sequence alone: the
child is replaced, and where the others stand is told to the new one. One who has had that happen goes on in a lane for
such, so that only they wait for it another time.
"""

from __future__ import annotations

import binascii
import logging
import threading
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, NamedTuple

from pagoda.confined.errors import (
    ConfinedError,
    CrashedError,
    FunctionError,
    NotReadyError,
    NotWantedError,
    TooSlowError,
)
from pagoda.confined.pool import Confined
from pagoda.structured.source import Source

logger = logging.getLogger(__name__)

# On a processor. What may come next takes a twentieth of a millisecond as a rule, and ten at the worst.
ADVANCE_SECONDS = 0.5
BEGIN_SECONDS = 2.0
MAX_BATCH = 32
SUSPICION_SECONDS = 600.0
ADVANCE, BEGIN = "pagoda.structured.worker:Worker.advance", "pagoda.structured.worker:Worker.begin"


class Step(NamedTuple):
    """What may come next: a bit for each token. If that cannot be said, `problem` says why."""

    mask: bytes
    is_done: bool = False
    problem: str = ""

    @classmethod
    def of(cls, reply: Any) -> Step:
        """Of a child, which may have been taken over."""
        try:
            mask, is_done, problem = reply
            return cls(b64decode(mask, validate=True), is_done is True, str(problem))
        except (TypeError, ValueError, binascii.Error):
            return cls(b"", problem=str(CrashedError("gave an answer that cannot be read")))


@dataclass
class Asked:
    """What may follow the first `num_tokens` of the `tokens` of a sequence, which is known by its `number`."""

    number: int
    source: Source
    tokens: list[int]
    num_tokens: int
    on_failure: Callable[[], None]  # the grammar has used up what it may
    answer: Future[Step] = field(default_factory=Future)


class Lane:
    """One child, and the thread that asks it."""

    def __init__(self, confined: Confined) -> None:
        self._confined = confined
        self._asked: SimpleQueue[Asked | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to prepare the child, which takes a second for a large vocabulary. Starting twice is fine."""
        with self._lock:
            self._start()

    def ask(self, asked: Asked) -> None:
        """Answer soon."""
        with self._lock:
            if self._is_closed:
                asked.answer.set_result(Step(b"", problem="the engine is closed"))
                return
            self._start()
            self._asked.put(asked)

    def close(self) -> None:
        """What is not answered yet, and what is asked from now on, is answered with a problem."""
        self._confined.close()
        with self._lock:
            self._is_closed = True
            self._asked.put(None)

    def _start(self) -> None:
        if self._thread is None and not self._is_closed:
            self._thread = threading.Thread(target=self._run, name="pagoda-grammars", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        with suppress(ConfinedError):
            self._confined.call(ADVANCE, [], seconds=ADVANCE_SECONDS)
        while (first := self._asked.get()) is not None:
            batch = [first, *self._more()]
            try:
                self._answer(batch)
            except Exception:
                logger.exception("What may follow %d sequences could not be asked", len(batch))
                for asked in batch:
                    if not asked.answer.done():
                        asked.answer.set_result(Step(b"", problem="it could not be asked what may follow"))

    def _more(self) -> list[Asked]:
        """What was asked meanwhile."""
        batch: list[Asked] = []
        with suppress(Empty):
            while len(batch) < MAX_BATCH:
                asked = self._asked.get_nowait()
                if asked is None:
                    self._asked.put(None)
                    break
                batch.append(asked)
        return batch

    def _answer(self, batch: list[Asked]) -> None:
        try:
            steps = self._advance(batch)
        except TooSlowError as error:
            # Each by itself shows which of several it was.
            steps = [_failed(each, error) if len(batch) == 1 else None for each in batch]
        except ConfinedError:
            steps = [None] * len(batch)
        for asked, step in zip(batch, steps, strict=True):
            asked.answer.set_result(step or self._by_itself(asked))

    def _advance(self, batch: list[Asked]) -> list[Step | None]:
        """What may follow each; None for a sequence that the child does not know."""
        pushed = [(each.number, each.num_tokens - 1, each.tokens[each.num_tokens - 1]) for each in batch]
        replies = self._confined.call(ADVANCE, pushed, seconds=ADVANCE_SECONDS)
        if not isinstance(replies, list) or len(replies) != len(batch):
            raise CrashedError("gave an answer that cannot be read")
        return [None if reply is None else Step.of(reply) for reply in replies]

    def _by_itself(self, asked: Asked) -> Step:
        """Tell the child where the sequence stood, which it was quick to find before, and ask again."""
        stood = (asked.number, tuple(asked.source), asked.tokens[: asked.num_tokens - 1])
        try:
            self._confined.call(BEGIN, stood, seconds=BEGIN_SECONDS)
            (step,) = self._advance([asked])
        except (NotWantedError, NotReadyError, FunctionError) as error:
            return Step(b"", problem=str(error))
        except ConfinedError as error:
            return _failed(asked, error)
        return step or Step(b"", problem="where it stood was forgotten")


def _failed(asked: Asked, error: ConfinedError) -> Step:
    """Of a grammar that has used up what it may."""
    asked.on_failure()
    return Step(b"", problem=f"what may come next {error}; ask for a simpler form")


class Lanes:
    """Who has asked for what took too much keeps to a lane with others of that kind for some minutes."""

    def __init__(self, confined: Callable[[], Confined]) -> None:
        self._usual, self._suspect = Lane(confined()), Lane(confined())
        self._suspects: dict[str, float] = {}

    def lane_of(self, tenant: str) -> Lane:
        return self._suspect if self._suspects.get(tenant, 0.0) > monotonic() else self._usual

    def suspect(self, tenant: str) -> None:
        self._suspects[tenant] = monotonic() + SUSPICION_SECONDS

    def close(self) -> None:
        self._usual.close()
        self._suspect.close()
