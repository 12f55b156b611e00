"""The interface of an eviction policy.

A policy orders what nobody uses and nothing else: that a used page, a leased one, or one that those who continue it
need, never goes is the rule of the holdings, not of the policy.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol


class Usage(Protocol):
    """How something was used that lies in pages. Times are ticks of the clock of its group.

    `note` is for the policy alone: what it remembers of this, None at first.
    """

    note: Any

    @property
    def first_used(self) -> int: ...

    @property
    def last_used(self) -> int:
        """When its last user left, or its last hit came."""

    @property
    def num_hits(self) -> int:
        """How many sequences have begun with it."""

    @property
    def is_spent(self) -> bool:
        """Whether it has had its use, unless another sequence comes."""

    @property
    def num_pages(self) -> int:
        """How many pages it takes, all of the same size within a group."""

    @property
    def recompute_tokens(self) -> int:
        """How many tokens have to be computed if it is gone."""

    @property
    def fingerprint(self) -> int:
        """Equal for what is held again after it has gone."""


class EvictionPolicy(ABC):
    """One order of eviction.

    Most policies are `priority` alone. What a page may earn or lose while it waits is said by the other methods, which
    policies from the literature on caches of the Web need: a second chance, several queues, a value that ages.
    `lifetime_seconds` is how long what nobody uses may lie at all, None for ever.
    """

    lifetime_seconds: float | None = None
    num_queues: int = 1

    def over(self, num_pages: int) -> "EvictionPolicy":  # noqa: ARG002
        """The policy for one order over `num_pages`: itself, unless it keeps a state."""
        return self

    @abstractmethod
    def priority(self, usage: Usage) -> Any:
        """A sortable value, asked whenever the last user leaves; the lowest goes first."""

    def queue(self, usage: Usage) -> int:  # noqa: ARG002
        """Which of its `num_queues` queues it stands in."""
        return 0

    def queues_in_order(self) -> Sequence[int]:
        """The queues, beginning with that from which something is to go now, if it has anything."""
        return (0,)

    def keeps(self, usage: Usage) -> bool:  # noqa: ARG002
        """Whether it has another chance, asked when its turn to go has come; its priority is asked again then."""
        return False

    def gone(self, usage: Usage, was_next: bool) -> None:  # noqa: B027
        """It is evicted, since it `was_next`, or for other reasons."""
