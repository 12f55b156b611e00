"""What moves records between pages and tiers: threads of its own in an engine, something that takes no bytes elsewhere.

Says how moves are done and by which clock, never which. The simulator has movers that act at once.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from pagoda.cache.residency.copies import blank_rest, copied
from pagoda.cache.residency.load import Load, Part
from pagoda.cache.residency.seek import Plan
from pagoda.cache.residency.writer import Staged, ToWrite, Writer
from pagoda.cache.tiers.base import Tier, TierStats
from pagoda.cache.tiers.record import Cipher, Draft, Label

if TYPE_CHECKING:
    from pagoda.cache.cache import PageStore

logger = logging.getLogger(__name__)

# So much may wait to be written to one tier.
STAGED_NBYTES = 256 << 20
NUM_READERS = 4


class Writing(Protocol):
    """Takes records to one tier. So many bytes wait; `num_skipped` were not written, since too much waited."""

    @property
    def nbytes(self) -> int: ...

    @property
    def num_skipped(self) -> int: ...

    def waits(self, key: bytes) -> bool:
        """Whether a record is on its way already."""

    def offer(self, staged: ToWrite) -> bool:
        """Write it soon; False if too much waits already."""

    def use(self, keys: list[bytes]) -> None:
        """Have the tier know soon that these were used, if it has them or is about to."""

    def drop(self, keys: list[bytes]) -> None:
        """Forget records soon, after what was offered before."""

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all is written; False if it took longer than so many `seconds`."""

    def close(self, seconds: float) -> None: ...


class Reading(Protocol):
    """What one sequence waits for, since it has `begun`."""

    @property
    def begun(self) -> float: ...

    @property
    def ended(self) -> float | None: ...

    @property
    def is_done(self) -> bool: ...

    @property
    def nbytes(self) -> Mapping[str, int]:
        """Read, by tier."""

    @property
    def failed(self) -> Mapping[Label, str]:
        """What could not be read, and why."""

    def call_off(self) -> None:
        """Write nothing any more; returns once that is so."""


def _contained(look: Callable[[], Sequence[TierStats]]) -> Sequence[TierStats] | None:
    try:
        return look()
    except Exception:
        logger.exception("A tier could not tell what it holds")
        return None


class Movers(ABC):
    """Called by the thread that steps. Times are by `now`, in seconds."""

    @abstractmethod
    def now(self) -> float: ...

    @abstractmethod
    def writing_to(self, tier: Tier) -> Writing: ...

    @abstractmethod
    def stage(self, label: Label, store: PageStore, pages: Sequence[int], page_tokens: int) -> ToWrite:
        """Take what is in `pages` now, to be written."""

    @abstractmethod
    def load(self, parts: Sequence[Part]) -> Reading:
        """Begin to read."""

    @abstractmethod
    def ask(self, question: Callable[[], Plan | None]) -> Future[Plan | None]:
        """Ask tiers that may take long."""

    @abstractmethod
    def look(self, look: Callable[[], Sequence[TierStats]]) -> Future[Sequence[TierStats] | None]:
        """Have `look` done by others; None if it failed."""

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Wait until something has moved, or so long."""

    @abstractmethod
    def close(self) -> None: ...


class ThreadMovers(Movers):
    """Moves real bytes beside the thread that steps. Records are encrypted if there is a `cipher`."""

    def __init__(self, cipher: Cipher | None = None) -> None:
        self._cipher = cipher
        self._readers = ThreadPoolExecutor(NUM_READERS, "pagoda-read")
        self._moved = Event()

    def now(self) -> float:
        return monotonic()

    def writing_to(self, tier: Tier) -> Writer:
        return Writer(tier, STAGED_NBYTES)

    def stage(self, label: Label, store: PageStore, pages: Sequence[int], page_tokens: int) -> Staged:
        [draft], event = copied(store, [(label, pages)])

        def finish(draft: Draft) -> None:
            event.wait()
            blank_rest(draft, store, page_tokens)

        return Staged(draft, finish, self._cipher)

    def load(self, parts: Sequence[Part]) -> Load:
        load = Load(parts, self._cipher, self._moved.set)
        load.begin(self._readers)
        return load

    def ask(self, question: Callable[[], Plan | None]) -> Future[Plan | None]:
        answer = self._readers.submit(question)
        answer.add_done_callback(lambda _: self._moved.set())
        return answer

    def look(self, look: Callable[[], Sequence[TierStats]]) -> Future[Sequence[TierStats] | None]:
        return self._readers.submit(_contained, look)

    def wait(self, seconds: float) -> None:
        self._moved.wait(seconds)
        self._moved.clear()

    def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)
