"""The sequences that wait: those of each tenant in order of arrival, tenants in order of what they have been served.

A virtual counter for each tenant counts the tokens computed for it, divided by its weight; whoever has been served
least comes next (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). Time in which a tenant asked
for nothing is no credit. Knows neither the cache nor who runs.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain

from pagoda.engine.request import Sequence


class Waiting:
    """A queue for each tenant. Those without a weight in `weights` have 1.

    Who has been served less by no more than a part of `quantum` tokens does not overtake one that has waited longer.
    """

    def __init__(self, weights: Mapping[str, float] | None, quantum: float) -> None:
        self._weights = weights or {}
        self._quantum = quantum
        self._queues: dict[str, deque[Sequence]] = {}
        self._served: defaultdict[str, float] = defaultdict(float)

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(self._queues[tenant] for tenant in self.in_turn(self._queues))

    def __getitem__(self, index: int) -> Sequence:
        return list(self)[index]

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._queues.get(sequence.request.tenant, ())

    @property
    def tenants(self) -> Collection[str]:
        """Those of whom somebody waits, by how long somebody has."""
        return self._queues.keys()

    def of(self, tenant: str) -> list[Sequence]:
        """Who waits of one tenant, in order."""
        return list(self._queues.get(tenant, ()))

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

    def charge(self, tenant: str, num_tokens: int) -> None:
        """So many tokens are computed for `tenant`."""
        self._served[tenant] += num_tokens / self.weight(tenant)

    def enter(self, tenant: str, active: Collection[str]) -> None:
        """`tenant` asks for something again, beside the `active` ones: it starts from what these have been served."""
        floor = min(map(self._served.__getitem__, active)) if active else max(self._served.values(), default=0.0)
        self._served[tenant] = max(self._served[tenant], floor)

    def in_turn(self, tenants: Iterable[str]) -> list[str]:
        """Each of them, the one served least first; equals as they are given."""
        return sorted(dict.fromkeys(tenants), key=lambda tenant: self._served[tenant] // self._quantum)
