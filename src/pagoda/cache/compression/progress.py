"""Where one sequence stands with its policy: when it is compressed next, and what it has ready for that."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import lcm
from typing import TYPE_CHECKING, Self

from pagoda.cache.compression.base import Policy
from pagoda.cache.compression.repeat import WORDLESS, Repeat, RepeatPrompt, Repeats

if TYPE_CHECKING:
    import torch

    from pagoda.kernels.compaction import LastQueries

# Queries are observed in blocks of so many tokens, which begin at multiples of it: sums are added up in one order then.
BLOCK_TOKENS = 64
# Of a sequence whose policy lets it be longer than the model's context: angles of positions are computed in fp32.
MOST_POSITIONS = 1 << 20


@dataclass(frozen=True)
class Plan:
    """How the sequences of a request are compressed: by `policy`, after multiples of `unit` tokens.

    Budgets are multiples of it too, and of `budget_unit`. Sequences are compressed when the prompt is computed, or as
    much of it as the policy says, or `most_exact` tokens; with `when_full` not before that, and with `when_short` when
    pages are short, if ever. What `repeats` says comes before that.
    """

    policy: Policy
    unit: int = 1
    most_exact: int | None = None
    when_full: bool = False
    budget_unit: int = 1
    when_short: bool = False
    repeats: Repeats | None = None

    @classmethod
    def of(
        cls, policy: Policy, page_tokens: int, max_len: int | None = None, repeat_prompt: RepeatPrompt = WORDLESS
    ) -> Self:
        """Of `policy`, in whole pages where it takes these; endless sequences are compressed by `max_len` tokens."""
        if policy.num_sinks is not None:
            return cls(policy, page_tokens, max_len)
        chunk = policy.repeated_tokens
        repeats = None if chunk is None else Repeats(chunk, page_tokens, repeat_prompt)
        return cls(policy, budget_unit=1 if policy.is_even else page_tokens, repeats=repeats)

    @property
    def is_endless(self) -> bool:
        """Whether sequences may be longer than the model's context."""
        return self.policy.num_sinks is not None

    @property
    def is_shareable(self) -> bool:
        """Whether what is left of a prefix is the same for all sequences of this plan that begin so."""
        return self.policy.is_of_prefix_alone and not (self.when_full or self.when_short)

    def begin(self, num_prompt_tokens: int, first_due: int | None = None) -> Compression:
        """Of a sequence that begins, or begins again: then pages were short after `first_due` tokens, if at all."""
        if self.when_short:
            return Compression(self, self.budget(first_due or num_prompt_tokens), first_due)
        most = None if self.most_exact is None else self.most_exact // self.unit * self.unit
        if self.when_full:
            assert most is not None
            return Compression(self, self.budget(most), most)
        length = min(num_prompt_tokens, self.policy.after or num_prompt_tokens)
        budget = self.budget(length)
        due = length if length > budget else budget + self.every if self.every else None
        if due is not None:
            due = min(self._whole(due), self._whole(due) if most is None else most)
        repeat = None if self.repeats is None or due is None else Repeat(self.repeats, due)
        return Compression(self, budget, due, repeat=repeat)

    def budget(self, num_prompt_tokens: int) -> int:
        """How many tokens are kept of a sequence with such a prompt."""
        sinks = self.policy.num_sinks
        least = 1 if sinks is None else self._whole(sinks) + 1
        unit = lcm(self.unit, self.budget_unit)
        return -(-max(self.policy.budget(num_prompt_tokens), least) // unit) * unit

    @property
    def every(self) -> int:
        return self._whole(self.policy.every)

    def _whole(self, num_tokens: int) -> int:
        return -(-num_tokens // self.unit) * self.unit


@dataclass(eq=False)
class Compression:
    """Where a sequence stands with its `plan`: it keeps `budget` tokens once it is `due`, after so many tokens.

    `calls` has the queries of its last tokens before that, by attention call; of a policy that observes all of them
    only those that it has not, and `observed` what it made of the others. `sinks` has the bytes of its first pages, by
    layer group, as they were before their keys were turned. It has to `repeat` its tokens before, unless it has. Of a
    sequence that has been compressed the first `num_exact_tokens` were computed as if it were not, and
    `num_omitted_tokens` are in no page of some layers.
    """

    plan: Plan
    budget: int
    due: int | None
    calls: dict[int, LastQueries] = field(default_factory=dict)
    observed: dict[int, torch.Tensor] = field(default_factory=dict)
    sinks: dict[int, torch.Tensor] = field(default_factory=dict)
    repeat: Repeat | None = None
    num_exact_tokens: int | None = None
    num_omitted_tokens: int = 0

    @property
    def policy(self) -> Policy:
        return self.plan.policy

    @property
    def is_undecided(self) -> bool:
        """Whether it is still to be said when it is compressed."""
        return self.plan.when_short and self.first_due is None

    @property
    def is_over(self) -> bool:
        """Whether it will not be compressed any more, nor anybody look at its queries."""
        return self.due is None and self.repeat is None and not self.is_undecided

    @property
    def first_due(self) -> int | None:
        """After how many tokens it was compressed first, or will be."""
        return self.due if self.num_exact_tokens is None else self.num_exact_tokens

    @property
    def next_stop(self) -> int | None:
        """Beyond so many tokens nothing is computed before it is compressed, or repeats what it has."""
        return self.due if self.repeat is None else self.repeat.start

    def watched_until(self, num_tokens: int) -> int | None:
        """Up to which token queries are looked at if it may be compressed after `num_tokens`; None if none are."""
        return num_tokens if self.is_undecided else self.due

    def begin_now(self, num_tokens: int) -> None:
        """Pages are short: it is due after the `num_tokens` that it has."""
        self.budget, self.due = self.plan.budget(num_tokens), num_tokens

    def first_watched(self, due: int) -> int:
        """The first token whose query is looked at before it is `due`."""
        return due - self.policy.num_queries if self.policy.observer is None else 0

    def block_end(self, first: int) -> int:
        """Where the block ends that begins with token `first`."""
        assert self.due is not None
        return min((first // BLOCK_TOKENS + 1) * BLOCK_TOKENS, self.due)

    def repeated(self) -> None:
        """A chunk is repeated."""
        assert self.repeat is not None
        self.repeat.end()
        if self.repeat.is_done:
            self.repeat = None

    def skip(self) -> None:
        """What it would be compressed to is there: it begins with that."""
        self.repeat = None
        self.advance()

    def advance(self) -> None:
        """It was due, and has been compressed. Queries that will be asked for again are kept."""
        assert self.due is not None
        self.num_exact_tokens = self.num_exact_tokens or self.due
        self.num_omitted_tokens = self.due - self.budget
        every, count = self.plan.every, self.policy.num_queries - self.plan.every
        self.due = self.due + every if every else None
        again = self.calls if every and count > 0 else {}
        self.calls = {call: replace(last, queries=last.queries[-count:]) for call, last in again.items()}
        if self.due is None:
            self.observed = {}

    def copy(self) -> Self:
        """For a fork."""
        return replace(self, calls=dict(self.calls), observed=dict(self.observed), sinks=dict(self.sinks))
