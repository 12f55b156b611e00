"""What tenants may take of a step, so that none waits long for what another one computes.

Whoever asks has to wait for the step that is being computed, and then for its own. While nobody else is present a
tenant has the whole budget. While somebody is, steps are short: so many sequences draw a token, by turns, and prompts
are computed in small chunks. One tenant may have the turn (`turns.py`), for large chunks, beside which the others have
little. Knows neither pages nor seats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from pagoda.engine.request import Sequence

# What a step has of those who have no turn: on two cores a small model takes twice as long for them as for one token.
SLICE_TOKENS = 48
# What a token counts that is drawn, in a slice.
DECODE_TOKENS = 2
# What the tenant that has the turn may have, in slices, and which part of a slice others have beside it.
TURN_SLICES = 3
BESIDE_PARTS = 4
FEW_DECODES = SLICE_TOKENS // BESIDE_PARTS // DECODE_TOKENS


class Division:
    """How a step of `budget` tokens is divided, if several tenants are present.

    `turn` is the tenant that has the turn, if one has; `has_prompts` says whether anybody has any to compute.
    """

    def __init__(
        self, budget: int, is_divided: bool = False, has_prompts: bool = False, turn: str | None = None
    ) -> None:
        self._is_divided = is_divided
        self.turn = turn
        self._left_of_turn = TURN_SLICES * SLICE_TOKENS
        self._left = (SLICE_TOKENS if turn is None else SLICE_TOKENS // BESIDE_PARTS) if is_divided else budget
        # Without a turn, half of a slice is for prompts.
        self._most_decodes = self._left // DECODE_TOKENS // (2 if has_prompts and turn is None else 1)

    def choose(self, decodes: list[Sequence], weight: Callable[[str], float]) -> Iterable[Sequence]:
        """Those of the running `decodes` that go on in this step: of each tenant by its weight, by turns."""
        if not self._is_divided or len(decodes) <= self._most_decodes:
            return decodes
        ranks, seen = {}, Counter[str]()
        for sequence in sorted(decodes, key=lambda sequence: sequence.last_planned):
            tenant = sequence.request.tenant
            seen[tenant] += 1
            ranks[sequence] = seen[tenant] / weight(tenant)
        return sorted(ranks, key=ranks.__getitem__)[: self._most_decodes]

    def limit(self, tenant: str) -> int:
        """How many tokens of prompts may still be planned for `tenant`."""
        return self._left_of_turn if tenant == self.turn else self._left

    def take(self, tenant: str, num_tokens: int, draws: bool = False) -> None:
        """So many tokens are planned for a sequence of `tenant`, which draws one after them or does not."""
        cost = num_tokens + (DECODE_TOKENS - 1 if draws else 0)
        if tenant == self.turn:
            self._left_of_turn -= cost
        elif self._is_divided:
            self._left -= cost
