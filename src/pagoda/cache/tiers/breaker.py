"""A circuit breaker: what failed several times in a row is left alone for a while, then tried with one call.

Knows no tiers, and takes its time from a clock that it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock


@dataclass(frozen=True)
class Patience:
    """After `num_failures` in a row nothing is asked for `first_pause_seconds`, which double up to the longest."""

    num_failures: int = 3
    first_pause_seconds: float = 1.0
    longest_pause_seconds: float = 60.0


class Breaker:
    """Closed while all is well; open while nothing is asked. Methods may be called from several threads."""

    def __init__(self, clock: Callable[[], float], patience: Patience | None = None) -> None:
        self._clock = clock
        self._patience = patience or Patience()
        self._lock = Lock()
        self._num_failures = 0
        self._reason = ""
        self._off_since: float | None = None
        self._pause_seconds = 0.0
        self._ask_again_at = 0.0
        self._is_probing = False

    @property
    def is_closed(self) -> bool:
        return self._off_since is None

    @property
    def fault(self) -> str | None:
        """Why nothing is asked, and since when; None while all is well."""
        with self._lock:
            if self._off_since is None:
                return None
            seconds = self._clock() - self._off_since
            return f"off for {seconds:.0f} s, after {self._num_failures} failures: {self._reason}"

    def may_ask(self) -> bool:
        """Whether to ask now. After a pause one caller alone is told to, and must say how it went."""
        with self._lock:
            if self._off_since is None:
                return True
            if self._is_probing or self._clock() < self._ask_again_at:
                return False
            self._is_probing = True
            return True

    def succeeded(self) -> bool:
        """Note an answer; True if this ends a time without."""
        with self._lock:
            was_off = self._off_since is not None
            self._num_failures = 0
            self._off_since = None
            self._is_probing = False
            return was_off

    def failed(self, reason: str, is_final: bool = False) -> bool:
        """Note a failure; True if nothing is asked from now on. One that `is_final` needs no others to decide that."""
        with self._lock:
            self._num_failures += 1
            self._reason = reason
            was_closed = self._off_since is None
            if was_closed:
                if self._num_failures < self._patience.num_failures and not is_final:
                    return False
                self._off_since = self._clock()
                self._pause_seconds = self._patience.first_pause_seconds
            elif self._is_probing:
                self._pause_seconds = min(2 * self._pause_seconds, self._patience.longest_pause_seconds)
            self._is_probing = False
            self._ask_again_at = self._clock() + self._pause_seconds
            return was_closed
