"""What one step may have, and what is planned of it so far: data that the scheduler fills.

Knows sequences and numbers of tokens; neither pages nor who comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pagoda.engine.division import Division
from pagoda.engine.request import Sequence


@dataclass(frozen=True)
class Limits:
    """How many sequences may run, and how many tokens a step may have; of prompts `max_scored_tokens` are scored in it.

    Tenants have `weights`, 1 where nothing is said.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_scored_tokens: int | None = None
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Round:
    """One call of `Scheduler.schedule`: what is planned, and what stands in the way of those who wait.

    `left` is what is left of the token budget; what encoders have to read counts, as `encoded`. `being_written` stands
    for pages that running prefills are about to write, and what they will be compressed to. Those of `held_up` lack
    pages; `is_full` stops everybody.
    """

    plan: dict[Sequence, int]
    left: int
    division: Division
    being_written: set[object] = field(default_factory=set)
    held_up: list[Sequence] = field(default_factory=list)
    encoded: int = 0
    is_full: bool = False

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        self.plan[sequence] = num_tokens
        self.left -= num_tokens
        self.division.take(sequence.request.tenant, num_tokens, draws=num_tokens == sequence.num_uncomputed)

    def budget(self, tenant: str) -> int:
        """What may still be planned of the prompts of `tenant`."""
        return min(self.left, self.division.limit(tenant))

    def encode(self, sequence: Sequence, num_tokens: int) -> None:
        """An encoder reads so many tokens for `sequence` as well."""
        self.encoded += num_tokens
        self.left -= num_tokens
        self.division.take(sequence.request.tenant, num_tokens)

    def take_out(self, sequence: Sequence) -> None:
        self.left += self.plan.pop(sequence, 0)
