"""Where one sequence stands with its policy: when it is compressed next, and what it has ready for that."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from pagoda.cache.compression.base import Policy

if TYPE_CHECKING:
    import torch

    from pagoda.kernels.compaction import LastQueries

# Queries are observed in blocks of so many tokens, which begin at multiples of it: sums are added up in one order then.
BLOCK_TOKENS = 64


@dataclass(eq=False)
class Compression:
    """Where a sequence stands with its `policy`: it keeps `budget` tokens once it is `due`, after so many tokens.

    `calls` has the queries of its last tokens before that, by attention call; of a policy that observes all of them
    only those that it has not, and `observed` what it made of the others. Of a sequence that has been compressed
    the first `num_exact_tokens` were computed as if it were not, and `num_omitted_tokens` are in no page of some
    layers.
    """

    policy: Policy
    budget: int
    due: int | None
    calls: dict[int, LastQueries] = field(default_factory=dict)
    observed: dict[int, torch.Tensor] = field(default_factory=dict)
    num_exact_tokens: int | None = None
    num_omitted_tokens: int = 0

    @classmethod
    def of(cls, policy: Policy, num_prompt_tokens: int) -> Self:
        """Of a sequence that begins."""
        budget = policy.budget(num_prompt_tokens)
        if num_prompt_tokens > budget:
            return cls(policy, budget, num_prompt_tokens)
        return cls(policy, budget, budget + policy.every if policy.every else None)

    def first_watched(self, due: int) -> int:
        """The first token whose query is looked at before it is `due`."""
        return 0 if self.policy.needs_whole_prompt else due - self.policy.num_queries

    def block_end(self, first: int) -> int:
        """Where the block ends that begins with token `first`."""
        assert self.due is not None
        return min((first // BLOCK_TOKENS + 1) * BLOCK_TOKENS, self.due)

    def advance(self) -> None:
        """It was due, and has been compressed. Queries that will be asked for again are kept."""
        assert self.due is not None
        self.num_exact_tokens = self.num_exact_tokens or self.due
        self.num_omitted_tokens = self.due - self.budget
        every, count = self.policy.every, self.policy.num_queries - self.policy.every
        self.due = self.due + every if every else None
        again = self.calls if every and count > 0 else {}
        self.calls = {call: replace(last, queries=last.queries[-count:]) for call, last in again.items()}
        if self.due is None:
            self.observed = {}

    def copy(self) -> Self:
        """For a fork."""
        return replace(self, calls=dict(self.calls), observed=dict(self.observed))
