"""Asks a confined child what may come next, for many sequences, so that the engine waits for none that takes long.

A grammar that was quick to compile may take any time and memory later. It then ends for its own sequence alone: the
child is replaced, and where the others stand is told to the new one. Who asks for what takes long goes on in a lane for
such, so that only they wait for it.
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
SLOW_SECONDS = 0.05
BEGIN_SECONDS = 2.0
MAX_BATCH = 32
SUSPICION_SECONDS = 600.0
ADVANCE, BEGIN = "pagoda.structured.worker:Worker.advance", "pagoda.structured.worker:Worker.begin"


class Step(NamedTuple):
    """What may come next, which took `seconds`: a bit for each token. If that cannot be said, `problem` says why."""

    mask: bytes
    is_done: bool = False
    problem: str = ""
    seconds: float = 0.0

    @classmethod
    def of(cls, reply: Any) -> Step:
        """Of a child, which may have been taken over."""
        try:
            mask, is_done, problem, seconds = reply
            return cls(b64decode(mask, validate=True), is_done is True, str(problem), float(seconds))
        except (TypeError, ValueError, binascii.Error):
            return cls(b"", problem=str(CrashedError("gave an answer that cannot be read")))


@dataclass
class Asked:
    """What may follow the first `num_tokens` of the `tokens` of a sequence, which is known by its `number`."""

    number: int
    tenant: str
    source: Source
    tokens: list[int]
    num_tokens: int
    on_failure: Callable[[], None]  # the grammar has used up what it may
    answer: Future[Step] = field(default_factory=Future)


class Lane:
    """One child, and the thread that asks it. `suspect` is told which tenants ask for what takes long."""

    def __init__(self, confined: Confined, suspect: Callable[[str], None]) -> None:
        self._confined = confined
        self._suspect = suspect
        self._asked: SimpleQueue[Asked | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._lock = threading.RLock()  # garbage collection may close a lane anywhere

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
        """What is not answered yet, and what is asked from now on, is answered with a problem. Ends the thread."""
        self._confined.close()
        with self._lock:
            self._is_closed = True
            self._asked.put(None)
        # It is the thread itself that closes its lane if it was the last to know of a grammar.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _start(self) -> None:
        if self._thread is None and not self._is_closed:
            self._thread = threading.Thread(target=self._run, name="pagoda-grammars", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        with suppress(ConfinedError):
            self._confined.call(ADVANCE, [], seconds=ADVANCE_SECONDS)
        while self._answer_next():
            pass

    def _answer_next(self) -> bool:
        """Wait for what is asked, and answer it; False when that was the last."""
        batch = self._taken()
        if not batch:
            return False
        try:
            self._answer(batch)
        except Exception:
            logger.exception("What may follow %d sequences could not be asked", len(batch))
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_result(Step(b"", problem="it could not be asked what may follow"))
        return True

    def _taken(self) -> list[Asked]:
        """What is asked next, and what has been asked meanwhile; nothing once the lane is closed."""
        batch: list[Asked] = []
        asked = self._asked.get()
        with suppress(Empty):
            while asked is not None:
                batch.append(asked)
                if len(batch) == MAX_BATCH:
                    return batch
                asked = self._asked.get_nowait()
            self._asked.put(None)
        return batch

    def _answer(self, batch: list[Asked]) -> None:
        steps: list[Step | None]
        try:
            steps = self._advance(batch)
        except TooSlowError as error:
            # Each by itself shows which of several it was.
            steps = [self._failed(each, error) if len(batch) == 1 else None for each in batch]
        except ConfinedError:
            steps = [None] * len(batch)
        for asked, found in zip(batch, steps, strict=True):
            step = found or self._by_itself(asked)
            if step.seconds > SLOW_SECONDS:
                self._suspect(asked.tenant)
            asked.answer.set_result(step)

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
            return self._failed(asked, error)
        return step or Step(b"", problem="where it stood was forgotten")

    def _failed(self, asked: Asked, error: ConfinedError) -> Step:
        """Of a grammar that has used up what it may."""
        asked.on_failure()
        self._suspect(asked.tenant)
        return Step(b"", problem=f"what may come next {error}; ask for a simpler form")


class Lanes:
    """The usual one, and one for those who have asked for what takes long, for some minutes."""

    def __init__(self, confined: Callable[[], Confined]) -> None:
        self._usual, self._slow = Lane(confined(), self._suspect), Lane(confined(), self._suspect)
        self._suspects: dict[str, float] = {}

    def start(self, tenant: str) -> None:
        """Prepare for what this tenant is about to ask."""
        self._lane_of(tenant).start()

    def ask(self, asked: Asked) -> None:
        self._lane_of(asked.tenant).ask(asked)

    def close(self) -> None:
        self._usual.close()
        self._slow.close()

    def _lane_of(self, tenant: str) -> Lane:
        return self._slow if self._suspects.get(tenant, 0.0) > monotonic() else self._usual

    def _suspect(self, tenant: str) -> None:
        self._suspects[tenant] = monotonic() + SUSPICION_SECONDS
