"""Guards any tier: whatever it raises, and whatever it does not answer in time, is a miss, and is counted.

A tier that fails several times in a row is off, visibly (`TierStats.fault`), until one call shows that it is well
again (`breaker.py`). That holds from its opening on: a store that is not there when the engine starts is used once it
comes. Only a ConfigError at the start ends that start, because waiting does not help there.

Calls run in threads that may be abandoned (`timed.py`): clients of stores have timeouts for each read and write, not
for a call, and none for looking a name up; disks have none at all. What is asked in the step loop, whether an instant
tier contains a page, is asked at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import NoReturn, TypeVar

from pagoda.cache.tiers.base import Put, Tier, TierSettings, TierStats
from pagoda.cache.tiers.breaker import Breaker, Patience
from pagoda.cache.tiers.record import Bytes
from pagoda.cache.tiers.timed import TimedCalls
from pagoda.errors import ConfigError, TierError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Limits:
    """What is waited for: `call_seconds` for a call, `long_seconds` for opening, clearing, flushing and closing.

    A tier in memory cannot hang: `call_seconds` is None for it, and its calls run in the thread of the caller. Of
    calls that are overdue `most_stuck` may be waited for by nobody.
    """

    call_seconds: float | None = 2.0
    long_seconds: float = 30.0
    most_stuck: int = 4
    patience: Patience = field(default_factory=Patience)


class GuardedTier(Tier):
    """The tier that `open_tier` opens. No method raises, whatever that one does."""

    def __init__(
        self,
        name: str,
        open_tier: Callable[[], Tier],
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ConfigError if the tier cannot be used as it is asked for. Any other failure turns it off for now."""
        self._name = name
        self._open_tier = open_tier
        self._limits = limits or Limits()
        self._breaker = Breaker(clock, self._limits.patience)
        self._timed = TimedCalls(self._limits.most_stuck)
        self._tier: Tier | None = None
        self._is_closed = False
        self._opening, self._lock = Lock(), Lock()
        self._last_stats = TierStats()
        self._num_errors, self._num_damaged = 0, 0
        try:
            self._run(lambda _: None, self._limits.long_seconds)
        except ConfigError:
            raise
        except Exception as error:
            self._failed(error, is_final=True)

    @classmethod
    def open(cls, settings: TierSettings) -> NoReturn:  # noqa: ARG003
        raise AssertionError("a guard is made around the opening of a tier")

    @property
    def name(self) -> str:
        return self._name

    @property
    def is_instant(self) -> bool:
        """As the tier says once it is open; before, it is not."""
        return self._tier is not None and self._tier.is_instant

    @property
    def fault(self) -> str | None:
        return self._breaker.fault

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return self._look(keys, lambda tier: tier.contains(keys), [False] * len(keys))

    def num_leading(self, keys: Sequence[bytes]) -> int:
        return self._look(keys, lambda tier: tier.num_leading(keys), 0)

    def get(self, keys: Sequence[bytes]) -> list[Bytes | None]:
        nothing: list[Bytes | None] = [None] * len(keys)
        return self._ask(lambda tier: tier.get(keys), nothing) if keys else nothing

    def use(self, keys: Sequence[bytes]) -> None:
        if self.is_instant:
            self._look(keys, lambda tier: tier.use(keys), None)

    def put(self, records: Sequence[Put]) -> list[bool]:
        return self._ask(lambda tier: tier.put(records), [False] * len(records)) if records else []

    def drop(self, keys: Sequence[bytes]) -> None:
        if keys:
            self._ask(lambda tier: tier.drop(keys), None)

    def damaged(self, keys: Sequence[bytes]) -> None:
        """Counts them, whatever the tier has noticed itself: what it did notice it has not returned."""
        with self._lock:
            self._num_damaged += len(keys)
        self.drop(keys)

    def clear(self) -> None:
        self._ask(lambda tier: tier.clear(), None, is_long=True)

    def flush(self) -> None:
        self._ask(lambda tier: tier.flush(), None, is_long=True)

    def stats(self) -> TierStats:
        """Of the last time that the tier could be asked, and what went wrong since."""
        if self._tier is not None and self._breaker.is_closed:
            try:
                self._last_stats = self._run(lambda tier: tier.stats(), self._limits.call_seconds)
            except Exception as error:
                self._failed(error)
        stats = self._last_stats
        with self._lock:
            return replace(
                stats,
                fault=self._breaker.fault or stats.fault,
                num_errors=stats.num_errors + self._num_errors,
                num_damaged=stats.num_damaged + self._num_damaged,
            )

    def close(self) -> None:
        """Closed in any case: one that does not answer is left alone."""
        self._is_closed = True
        tier = self._tier
        if tier is None:
            return
        try:
            self._timed.run(tier.close, self._limits.long_seconds)
        except Exception as error:
            logger.warning("The %s tier could not be closed: %s", self._name, error)

    def _look(self, keys: Sequence[bytes], call: Callable[[Tier], Answer], nothing: Answer) -> Answer:
        """Ask whether `keys` are held. What answers from memory proves nothing, so that counts as no success."""
        tier = self._tier
        if not keys:
            return nothing
        if tier is None or not tier.is_instant:
            return self._ask(call, nothing)
        if not self._breaker.is_closed:
            return nothing
        try:
            return call(tier)
        except Exception as error:
            self._failed(error)
            return nothing

    def _ask(self, call: Callable[[Tier], Answer], nothing: Answer, is_long: bool = False) -> Answer:
        if self._is_closed or not self._breaker.may_ask():
            return nothing
        seconds = self._limits.call_seconds
        try:
            answer = self._run(call, self._limits.long_seconds if is_long and seconds is not None else seconds)
        except Exception as error:  # requests go on whatever a tier does
            self._failed(error)
            return nothing
        except BaseException:  # this thread is ended, which says nothing of the tier
            self._breaker.failed("it was interrupted")
            raise
        if self._breaker.succeeded():
            logger.warning("The %s tier is back", self._name)
        return answer

    def _run(self, call: Callable[[Tier], Answer], seconds: float | None) -> Answer:
        if seconds is None:
            return call(self._opened())
        return self._timed.run(lambda: call(self._opened()), seconds)

    def _opened(self) -> Tier:
        """The tier, which is opened if it is not yet. One opened too late for its caller serves the next."""
        if self._tier is not None:
            return self._tier
        if not self._opening.acquire(blocking=False):
            raise TierError("it is still being opened")
        try:
            tier = self._tier or self._open_tier()
            if self._is_closed:
                tier.close()
                raise TierError("it is closed")
            self._tier = tier
            return tier
        finally:
            self._opening.release()

    def _failed(self, error: Exception, is_final: bool = False) -> None:
        with self._lock:
            self._num_errors += 1
        if not isinstance(error, OSError | TierError | ConfigError):  # a bug of ours, or of a library
            logger.error("The %s tier failed", self._name, exc_info=error)
        reason = str(error) or type(error).__name__
        if self._breaker.failed(reason, is_final):
            logger.warning("The %s tier is off: %s", self._name, reason)
