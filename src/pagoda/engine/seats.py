"""How many sequences of each tenant may run at once.

Tenants that have something to run share the seats by weight. One may have more while nobody else wants them, and gives
them back as soon as one that has less than its share does. Knows no pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Sequenced

from pagoda.engine.request import Sequence


class Seats:
    """Who has which of `num_seats` while `running` run, for tenants of these `weights`."""

    def __init__(self, num_seats: int, running: Sequenced[Sequence], weights: Mapping[str, float]) -> None:
        total = sum(weights.values())
        self._shares = {tenant: int(num_seats * weight / total) or 1 for tenant, weight in weights.items()}
        self._running = running
        self._held = Counter[str]()
        for sequence in running:
            self._held[sequence.request.tenant] += self._needed(sequence)
        self.num_free = num_seats - sum(self._held.values())

    def has_room(self, sequence: Sequence) -> bool:
        """Whether `sequence` can run beside the others."""
        return self._needed(sequence) <= self.num_free

    def victim(self, sequence: Sequence) -> Sequence | None:
        """The next to give way to `sequence`: the youngest of the tenant that has most beyond its share.

        None if `sequence` has to wait: with it its tenant would have more than its own share, or nobody else has.
        """
        tenant, needed = sequence.request.tenant, self._needed(sequence)
        beyond = {other: held - self._shares[other] for other, held in self._held.items() if held > self._shares[other]}
        if self._held[tenant] + needed > self._shares[tenant] or self.num_free + sum(beyond.values()) < needed:
            return None
        most = max(beyond, key=beyond.__getitem__)
        return next(each for each in reversed(self._running) if each.request.tenant == most)

    def _needed(self, sequence: Sequence) -> int:
        """A prompt keeps seats for the samples it will fork into, as far as its tenant's share goes."""
        request = sequence.request
        return min(request.params.n - len(request.sequences) + 1, self._shares[request.tenant])
