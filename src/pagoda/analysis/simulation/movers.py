"""Moves records of a simulation: writes in no time, reads as fast as the rates of tiers say, by the simulated clock.

Knows sizes, no bytes; no thread and no real time have a part in it. What is offered is written when whoever steps says
so (`write`), or a load has read what it needs: so what makes room for a load never takes it from under it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from pagoda.analysis.simulation.tiers import RecordSizes, record_of
from pagoda.cache.cache import PageStore
from pagoda.cache.prefix.keys import TOKEN_NBYTES
from pagoda.cache.residency.load import Part
from pagoda.cache.residency.movers import Movers, Reading, Writing
from pagoda.cache.residency.seek import Plan
from pagoda.cache.residency.writer import ToWrite
from pagoda.cache.tiers.base import Put, Tier, TierStats
from pagoda.cache.tiers.record import Label


@dataclass(frozen=True, slots=True)
class SizedRecord:
    """A record of so many bytes that holds none of them. Of its group it has `num_tokens` of its own."""

    key: bytes
    group: int
    num_tokens: int
    nothing: memoryview

    @property
    def nbytes(self) -> int:
        return self.nothing.nbytes

    def record(self) -> memoryview:
        return self.nothing


class SimulatedMovers(Movers):
    """`rates` are of tiers by name, in what `sizes` are in: one that has none takes no time. Each reads for one at a
    time. `written_tokens` were taken by each tier, by the pages of layer group `main`.
    """

    def __init__(
        self, sizes: RecordSizes, rates: Mapping[str, float | None], clock: Callable[[], float], main: int
    ) -> None:
        self._sizes = sizes
        self._rates = rates
        self._clock = clock
        self._main = main
        self._free_from: defaultdict[str, float] = defaultdict(float)
        self._nothings: dict[int, memoryview] = {}  # of each size
        self._loads: list[_Load] = []
        self._writings: list[_Writing] = []
        self.written_tokens = Counter[str]()

    def now(self) -> float:
        return self._clock()

    def writing_to(self, tier: Tier) -> Writing:
        self._writings.append(_Writing(tier, lambda record: self._note_written(tier.name, record)))
        return self._writings[-1]

    def write(self) -> None:
        """Write all that was offered."""
        for each in self._writings:
            each.flush()

    def stage(self, label: Label, store: PageStore, pages: Sequence[int], page_tokens: int) -> ToWrite:  # noqa: ARG002
        num_tokens = len(label.tokens) // TOKEN_NBYTES * self._sizes.unit_tokens
        size = self._sizes.of(label)
        nothing = self._nothings.get(size) or self._nothings.setdefault(size, record_of(size))
        return SizedRecord(label.key, label.group, num_tokens, nothing)

    def load(self, parts: Sequence[Part]) -> Reading:
        load = _Load(parts, self._clock)
        self.write()
        load.ended = max((self._end_of(*each) for each in load.nbytes.items()), default=self._clock())
        self._loads = [each for each in self._loads if not each.is_done]
        self._loads.append(load)
        return load

    @property
    def next_end(self) -> float:
        """When the first of the loads ends that have not yet."""
        return min((each.ended for each in self._loads if not each.is_done), default=self._clock())

    def ask(self, question: Callable[[], Plan | None]) -> Future[Plan | None]:  # noqa: ARG002
        raise AssertionError("simulated tiers answer at once")

    def look(self, look: Callable[[], Sequence[TierStats]]) -> Future[Sequence[TierStats] | None]:
        found: Future[Sequence[TierStats] | None] = Future()
        found.set_result(look())
        return found

    def wait(self, seconds: float) -> None:
        """Nobody waits in real time."""

    def close(self) -> None:
        """There are no threads to end."""

    def _end_of(self, name: str, nbytes: int) -> float:
        """When so much has been read from a tier that has to read other things before."""
        rate, now = self._rates[name], self._clock()
        if rate is None:
            return now
        self._free_from[name] = max(self._free_from[name], now) + nbytes / rate
        return self._free_from[name]

    def _note_written(self, name: str, record: ToWrite) -> None:
        assert isinstance(record, SizedRecord)
        if record.group == self._main:
            self.written_tokens[name] += record.num_tokens


class _Writing:
    """Writes whatever is offered, in its order."""

    num_skipped = 0

    def __init__(self, tier: Tier, note: Callable[[ToWrite], None]) -> None:
        self._tier = tier
        self._note = note
        self._waiting: dict[bytes, ToWrite] = {}
        self._used: list[bytes] = []  # of what waits

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self._waiting.values())

    def waits(self, key: bytes) -> bool:
        return key in self._waiting

    def offer(self, staged: ToWrite) -> bool:
        self._waiting[staged.key] = staged
        return True

    def use(self, keys: list[bytes]) -> None:
        self._tier.use([key for key in keys if key not in self._waiting])
        self._used += [key for key in keys if key in self._waiting]

    def drop(self, keys: list[bytes]) -> None:
        self.flush()
        self._tier.drop(keys)

    def flush(self, seconds: float | None = None) -> bool:  # noqa: ARG002
        for key, staged in self._waiting.items():
            (is_taken,) = self._tier.put([Put(key, staged.record())])
            if is_taken:
                self._note(staged)
        self._waiting.clear()
        self._tier.use(self._used)
        self._used = []
        return True

    def close(self, seconds: float) -> None:
        """Nothing waits."""


class _Load:
    """Records that were read when the load began, and are there when it has `ended`."""

    def __init__(self, parts: Sequence[Part], clock: Callable[[], float]) -> None:
        self._clock = clock
        self.begun = self.ended = clock()
        self.failed: dict[Label, str] = {}
        self.nbytes = Counter[str]()
        for part in parts:
            (record,) = part.tier.get([part.label.key])
            if record is None:
                self.failed[part.label] = "it is gone"
            else:
                self.nbytes[part.tier.name] += memoryview(record).nbytes

    @property
    def is_done(self) -> bool:
        return self._clock() >= self.ended

    def call_off(self) -> None:
        self.ended = self.begun
