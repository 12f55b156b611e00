"""The interface of a tier: a place that holds records by key, and may lose any of them at any time.

A tier knows nothing of what it holds beyond what a record says of itself (`record.py`). It never decides what comes or
goes up: that is `residency`'s business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pagoda.cache.tiers.record import Bytes


class Put(NamedTuple):
    """A record to be kept under `key`."""

    key: bytes
    record: memoryview


@dataclass(frozen=True)
class TierSettings:
    """How a tier is opened: `where` is its folder or URL, `limit_nbytes` how much it may take there (None: no limit).

    Records are to be gone `ttl_seconds` after they were last put, where a tier has a clock of its own. One call may
    take `timeout_seconds` at most. `password` opens a store whose URL has none.
    """

    where: str = ""
    limit_nbytes: int | None = None
    ttl_seconds: float | None = None
    timeout_seconds: float = 2.0
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class TierStats:
    """What a tier holds now, of at most `limit_nbytes` (None: it does not decide that itself), and since the start.

    `nbytes` is what it takes where it lies, all overheads included. `fault` says in words why it is off, or only read;
    None while all is well. Of records asked for `num_damaged` were not what they said. Where a store belongs to others
    too, `nbytes` is what this process knows of its own, and `shared_nbytes` all that it holds.
    """

    num_records: int = 0
    nbytes: int = 0
    limit_nbytes: int | None = None
    num_dropped: int = 0  # to make room
    num_refused: int = 0  # not taken: too large, or there was no room
    num_damaged: int = 0
    num_errors: int = 0
    read_nbytes: int = 0
    written_nbytes: int = 0
    fault: str | None = None
    shared_nbytes: int | None = None


class Tier(ABC):
    """Methods may be called from several threads. They may take long, so the step loop calls none but `contains`, and
    that only where `is_instant`.

    What fails raises OSError or TierError: whoever calls takes it for a miss (`guarded.py`). A record that was put may
    be gone again at once; one that is returned may be damaged: `read_record` tells.
    """

    @classmethod
    @abstractmethod
    def open(cls, settings: TierSettings) -> Tier:
        """Raises ConfigError or TierError, which say what to do, if it cannot be used."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What people are told: host, disk or remote."""

    @property
    def is_instant(self) -> bool:
        """Whether `contains` answers from memory."""
        return True

    @property
    def fault(self) -> str | None:
        """Why it is off, as far as is known without asking it."""
        return None

    @property
    def persists(self) -> bool:
        """Whether what it holds outlives the process."""
        return True

    @abstractmethod
    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether each is held, as far as is known."""

    def num_leading(self, keys: Sequence[bytes]) -> int:
        """How many of the first `keys` are held, without a gap."""
        held = self.contains(keys)
        return held.index(False) if False in held else len(held)

    @abstractmethod
    def get(self, keys: Sequence[bytes]) -> list[Bytes | None]:
        """The records as they were put, None where there is none. Those that are read count as used."""

    def use(self, keys: Sequence[bytes]) -> None:  # noqa: B027 - most have no need of it
        """What is held of these counts as used: the pool had them when they were wanted.

        Only those that are instant are told, so nobody else is to be asked here.
        """

    @abstractmethod
    def put(self, records: Sequence[Put]) -> list[bool]:
        """Keep records, giving up others where there is a limit; False for each that was not taken.

        One that is held already counts as used and is True.
        """

    @abstractmethod
    def drop(self, keys: Sequence[bytes]) -> None:
        """Forget records; unknown ones are ignored."""

    def damaged(self, keys: Sequence[bytes]) -> None:
        """The records that were returned are not what they should be: see that they go."""
        self.drop(keys)

    @abstractmethod
    def clear(self) -> None:
        """Forget all that this process may forget."""

    @abstractmethod
    def stats(self) -> TierStats: ...

    @abstractmethod
    def flush(self) -> None:
        """Write down what was put so far, if this tier outlives the process."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections. Nothing is called after it but `close`."""
