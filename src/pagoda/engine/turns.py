"""Whose prompts come first in a step, and who has the turn while several tenants are present.

A tenant that ran nothing comes first with a little of its prompts, unless it has been served far more than others; so a
short prompt waits for no long one. Behind them tenants come in the order of what they have been served. Knows who waits
and who runs, and neither pages nor seats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pagoda.engine.division import FEW_DECODES, Division
from pagoda.engine.request import Sequence
from pagoda.engine.waiting import Waiting

# What a step takes beside its tokens, in tokens: it reads all weights of the model, for however few.
STEP_TOKENS = 64
# What comes first of the prompts of a tenant that ran nothing.
NEWCOMER_TOKENS = 288


@dataclass(frozen=True)
class Wanted:
    """What tenants want of a step: how many sequences of each draw a token, and whose prompts come in which order."""

    decodes: Counter[str]
    with_prompts: list[str]

    @property
    def tenants(self) -> set[str]:
        return self.decodes.keys() | {*self.with_prompts}


class Turns:
    """Of the tenants of whom somebody is `waiting` or runs, in steps of `budget` tokens."""

    def __init__(self, waiting: Waiting, budget: int) -> None:
        self._waiting = waiting
        self._budget = budget
        self._newcomers: dict[str, int] = {}  # who decode nothing, and what of their prompts still comes first
        self._stuck: str | None = None  # whose turn it was when nothing of its prompts could be planned

    def wanted(self, running: Iterable[Sequence]) -> Wanted:
        """By newcomers, and then by all others, in turn."""
        decodes, prefilling = Counter[str](), dict[str, None]()
        for each in running:
            if each.num_uncomputed <= 1:
                decodes[each.request.tenant] += 1
            else:
                prefilling[each.request.tenant] = None
        others = [each for each in self._waiting.tenants if each not in prefilling]
        tenants = self._waiting.in_turn([*others, *prefilling])
        active = {*tenants, *decodes}
        known = {each: left for each, left in self._newcomers.items() if each in tenants and each not in decodes}
        self._newcomers = {each: left for each, left in known.items() if left > 0}
        for tenant in others:
            if tenant not in decodes and not self._waiting.is_far_ahead(tenant, active):
                self._newcomers.setdefault(tenant, NEWCOMER_TOKENS)
        rest = [each for each in tenants if each not in self._newcomers]
        return Wanted(decodes, [*self._newcomers, *rest])

    def divide(self, wanted: Wanted) -> Division:
        """What tenants may take of the next step."""
        if not self._waiting.is_several(wanted.tenants):
            return Division(self._budget)
        first = wanted.with_prompts[0] if wanted.with_prompts else None
        has_turn = first is not None and first != self._stuck and self._may_turn(first, wanted)
        return Division(self._budget, True, bool(wanted.with_prompts), first if has_turn else None)

    def took(self, tenant: str, num_tokens: int, division: Division) -> None:
        """So many tokens of its prompts are planned for `tenant`."""
        if tenant in self._newcomers:
            self._newcomers[tenant] -= num_tokens
        if num_tokens and tenant == self._stuck:
            self._stuck = None
        elif not num_tokens and tenant == division.turn:
            self._stuck = tenant

    def charge(self, plan: Mapping[Sequence, int], running: Iterable[Sequence], wanted: Wanted) -> None:
        """Every tenant has had its part of the time that a step takes, and some all that they wanted."""
        num_tokens = Counter[str]()
        for sequence, planned in plan.items():
            num_tokens[sequence.request.tenant] += planned
        for tenant, planned in num_tokens.items():
            self._waiting.charge(tenant, planned * (1 + STEP_TOKENS / num_tokens.total()))
        if len(wanted.tenants) > 1:
            unfinished = {each.request.tenant for each in running if plan.get(each, 0) < each.num_uncomputed}
            self._waiting.content(wanted.tenants - unfinished - self._waiting.tenants, wanted.tenants)

    def _may_turn(self, tenant: str, wanted: Wanted) -> bool:
        """Whether it is new, or is behind others that want more of a step than a turn would leave them."""
        if tenant in self._newcomers:
            return True
        others = (count for each, count in wanted.decodes.items() if each != tenant)
        has_rivals = len(wanted.with_prompts) > 1 or any(count > FEW_DECODES for count in others)
        return has_rivals and self._waiting.is_behind(tenant, wanted.tenants)
