"""Takes records to one tier on a thread of its own, within a bound: what comes too fast is not written.

The bytes of a page are copied before it may be used for anything else; what is left to do of a record, its header and
checksum, is done here, once for all tiers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from threading import Condition, Lock, Thread
from time import time
from typing import Protocol

from pagoda.cache.tiers.base import Put, Tier
from pagoda.cache.tiers.record import Cipher, Draft

logger = logging.getLogger(__name__)

# So much is handed to a tier at once.
BATCH_NBYTES = 4 << 20
# Keys of which the tier does not know yet that they were used; it need not hear of more.
MOST_USED = 1 << 16


class ToWrite(Protocol):
    """A record that tiers may take."""

    @property
    def key(self) -> bytes: ...

    @property
    def nbytes(self) -> int: ...

    def record(self) -> memoryview: ...


class Staged:
    """A copy of a page on its way to tiers; `finish` is called with its bytes before they become a record."""

    def __init__(self, draft: Draft, finish: Callable[[Draft], None], cipher: Cipher | None) -> None:
        self.key = draft.label.key
        self.nbytes = draft.nbytes
        self._draft = draft
        self._finish = finish
        self._cipher = cipher
        self._lock = Lock()
        self._record: memoryview | None = None

    def record(self) -> memoryview:
        """The record, made by whoever asks first."""
        with self._lock:
            if self._record is None:
                self._finish(self._draft)
                self._record = self._draft.seal(int(time() * 1000), self._cipher)
            return self._record


class Writer:
    """Writes to `tier` what is offered, as long as no more than `most_nbytes` wait."""

    def __init__(self, tier: Tier, most_nbytes: int) -> None:
        self._tier = tier
        self._most_nbytes = most_nbytes
        self._queue: deque[ToWrite] = deque()
        self._waiting: set[bytes] = set()
        self._used: set[bytes] = set()
        self._dropping: list[bytes] = []
        self._nbytes = 0
        self._is_busy = False
        self._is_closed = False
        self._changed = Condition()
        self._thread: Thread | None = None
        self.num_skipped = 0  # since too much waited

    @property
    def nbytes(self) -> int:
        """Of what waits."""
        return self._nbytes

    def waits(self, key: bytes) -> bool:
        """Whether a record is on its way already."""
        return key in self._waiting

    def offer(self, staged: ToWrite) -> bool:
        """Write it soon; False if too much waits already."""
        with self._changed:
            if self._is_closed or self._nbytes + staged.nbytes > self._most_nbytes:
                self.num_skipped += 1
                return False
            self._queue.append(staged)
            self._waiting.add(staged.key)
            self._nbytes += staged.nbytes
            self._wake()
        return True

    def use(self, keys: list[bytes]) -> None:
        """Have the tier know soon that these were used, if it has them or is about to."""
        with self._changed:
            if len(self._used) < MOST_USED:
                self._used.update(keys)
                self._wake()

    def drop(self, keys: list[bytes]) -> None:
        """Forget records soon, after what was offered before."""
        with self._changed:
            self._dropping += keys
            self._wake()

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all that was offered is written; False if it took longer than so many `seconds`."""
        with self._changed:
            is_done = self._changed.wait_for(lambda: not (self._has_work or self._is_busy), seconds)
        if is_done:
            self._attempt(self._tier.flush)
        return is_done

    def close(self, seconds: float) -> None:
        """Write what waits, for so many `seconds` at most, and end the thread."""
        self.flush(seconds)
        with self._changed:
            self._is_closed = True
            self._queue.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)

    @property
    def _has_work(self) -> bool:
        return bool(self._queue or self._dropping or self._used)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = Thread(target=self._run, name=f"pagoda-write-{self._tier.name}", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._has_work or self._is_closed)
                if self._is_closed:
                    return
                self._is_busy = True
                used = self._take_used()
                batch, dropping = self._take(), self._dropping
                if not batch:
                    self._dropping = []
            if used:
                self._attempt(self._tier.use, used)
            if batch:
                self._attempt(self._put, batch)
                with self._changed:
                    for staged in batch:
                        self._waiting.discard(staged.key)
            elif dropping:
                self._attempt(self._tier.drop, dropping)

    def _take_used(self) -> list[bytes]:
        """Those that do not wait to be written first."""
        used = [key for key in self._used if key not in self._waiting]
        self._used.difference_update(used)
        return used

    def _take(self) -> list[ToWrite]:
        batch: list[ToWrite] = []
        nbytes = 0
        while self._queue and (not batch or nbytes + self._queue[0].nbytes <= BATCH_NBYTES):
            staged = self._queue.popleft()
            nbytes += staged.nbytes
            batch.append(staged)
        self._nbytes -= nbytes
        return batch

    def _put(self, batch: list[ToWrite]) -> None:
        self._tier.put([Put(staged.key, staged.record()) for staged in batch])

    def _attempt(self, action: Callable[..., object], *arguments: object) -> None:
        """What a tier fails at is lost, and nothing else."""
        try:
            action(*arguments)
        except Exception:
            logger.exception("Writing to the %s tier failed", self._tier.name)
