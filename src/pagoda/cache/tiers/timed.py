"""Calls that are waited for until a deadline, and then left to themselves.

Nothing in a process can stop a read of a disk that is gone, or the resolver of a network that is. Such calls run in
threads of their own, which do not keep the process from ending. Once too many have not come back no more are begun.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Any, TypeVar

from pagoda.errors import TierError

Answer = TypeVar("Answer")


class TimedCalls:
    """Runs calls, of which at most `most_stuck` may be overdue at a time."""

    def __init__(self, most_stuck: int) -> None:
        self._most_stuck = most_stuck
        self._lock = Lock()
        self._num_stuck = 0

    def run(self, call: Callable[[], Answer], seconds: float) -> Answer:
        """What `call` returns or raises; TierError if that takes longer than `seconds`."""
        if self._num_stuck >= self._most_stuck:
            raise TierError(f"{self._num_stuck} calls have not come back")
        outcome: Future[Answer] = Future()
        # One thread a call costs some 0.1 ms: little beside what is read or written meanwhile, and none lies idle.
        Thread(target=_work, args=(outcome, call), name="pagoda-tier", daemon=True).start()
        try:
            return outcome.result(timeout=seconds)
        except TimeoutError:
            if outcome.done():
                return outcome.result()  # that came just now, or the call has a timeout of its own
            self._leave(outcome)
            raise TierError(f"it did not answer within {seconds:g} s") from None

    def _leave(self, outcome: Future[Any]) -> None:
        with self._lock:
            self._num_stuck += 1
        outcome.add_done_callback(lambda _: self._came_back())

    def _came_back(self) -> None:
        with self._lock:
            self._num_stuck -= 1


def _work(outcome: Future[Answer], call: Callable[[], Answer]) -> None:
    try:
        outcome.set_result(call())
    except BaseException as error:  # whoever waits is to have it
        outcome.set_exception(error)
