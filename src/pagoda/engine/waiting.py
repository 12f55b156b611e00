"""The sequences that wait: those of each tenant in order of arrival, tenants in order of what they have been served.

A virtual counter for each tenant counts the tokens computed for it, divided by its weight; whoever has been served
least comes next (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). Time in which a tenant
asked for nothing is little credit; it stays present for a while, as it may ask again. Knows neither cache nor running.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from itertools import chain

from pagoda.engine.request import Sequence

# Which part of a step's tokens tenants may differ by that are served alike, and that one may be behind that comes back.
EQUAL_PARTS = 8
CREDIT_PARTS = 4
# A tenant has left when so many tokens have been computed for others since it had anything to compute.
PRESENT_TOKENS = 16_384


class Waiting:
    """A queue for each tenant, for steps of `step_tokens`. Those without a weight in `weights` have 1.

    Tenants that differ by a small part of a step are served alike; one that is ahead by a whole step is far ahead.
    """

    def __init__(self, weights: Mapping[str, float] | None, step_tokens: int) -> None:
        self._weights = weights or {}
        self._step_tokens = step_tokens
        self._quantum = step_tokens / EQUAL_PARTS
        self._credit = step_tokens / CREDIT_PARTS
        self._queues: dict[str, deque[Sequence]] = {}
        self._served: defaultdict[str, float] = defaultdict(float)
        self._num_tokens = 0.0  # computed for all of them
        self._seen: dict[str, float] = {}  # where that stood when a tenant last had anything computed, or came

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(self._queues[tenant] for tenant in self.in_turn(self._queues))

    def __getitem__(self, index: int) -> Sequence:
        return list(self)[index]

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._queues.get(sequence.request.tenant, ())

    @property
    def tenants(self) -> Set[str]:
        """Those of whom somebody waits, by how long somebody has."""
        return self._queues.keys()

    def of(self, tenant: str) -> list[Sequence]:
        """Who waits of one tenant, in order."""
        return list(self._queues.get(tenant, ()))

    def number_of(self, tenant: str) -> int:
        return len(self._queues.get(tenant, ()))

    def append(self, sequence: Sequence) -> None:
        self._queues.setdefault(sequence.request.tenant, deque()).append(sequence)

    def appendleft(self, sequence: Sequence) -> None:
        """It comes before the others of its tenant: it has waited before them."""
        self._queues.setdefault(sequence.request.tenant, deque()).appendleft(sequence)

    def remove(self, sequence: Sequence) -> None:
        tenant = sequence.request.tenant
        self._queues[tenant].remove(sequence)
        if not self._queues[tenant]:
            del self._queues[tenant]

    def weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    def charge(self, tenant: str, num_tokens: float) -> None:
        """What takes as long as so many tokens is computed for `tenant`."""
        self._served[tenant] += num_tokens / self.weight(tenant)
        self._num_tokens += num_tokens
        self._seen[tenant] = self._num_tokens

    def enter(self, tenant: str, active: Collection[str]) -> None:
        """`tenant` asks for something, beside the `active` ones: it starts not far from what these have been served."""
        if tenant not in active:
            floor = min(map(self._served.__getitem__, active)) if active else max(self._served.values(), default=0.0)
            self._served[tenant] = max(self._served[tenant], floor - self._credit)
        self._seen[tenant] = self._num_tokens

    def content(self, tenants: Collection[str], active: Collection[str]) -> None:
        """All that `tenants` want is computed: what other `active` ones have beyond that is not owed to them."""
        most = max(map(self._served.__getitem__, active), default=0.0)
        for tenant in tenants:
            self._served[tenant] = max(self._served[tenant], most - self._credit)

    def is_several(self, active: Collection[str]) -> bool:
        """Whether tenants beside the `active` ones, or several of these, are present."""
        for tenant in [each for each, seen in self._seen.items() if self._num_tokens - seen > PRESENT_TOKENS]:
            del self._seen[tenant]
        return len(self._seen.keys() | active) > 1

    def is_behind(self, tenant: str, active: Collection[str]) -> bool:
        """Whether each of the other `active` ones, if there are any, has been served more."""
        others = [self._served[each] for each in active if each != tenant]
        return bool(others) and min(others) - self._served[tenant] >= self._quantum

    def is_far_ahead(self, tenant: str, active: Collection[str]) -> bool:
        """Whether one of the `active` ones has been served less by a whole step."""
        return self._served[tenant] - min(map(self._served.__getitem__, active)) >= self._step_tokens

    def in_turn(self, tenants: Iterable[str]) -> list[str]:
        """Each of them, the one served least first; equals as they are given."""
        each = dict.fromkeys(tenants)
        least = min(map(self._served.__getitem__, each), default=0.0)
        return sorted(each, key=lambda tenant: (self._served[tenant] - least) // self._quantum)
