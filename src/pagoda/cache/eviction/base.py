"""The interface of an eviction policy.

A policy orders what nobody uses and nothing else: that a used page, a leased one, or one that those who continue it
need, never goes is the rule of the holdings, not of the policy.
"""

from abc import ABC, abstractmethod
from typing import Any, Protocol


class Usage(Protocol):
    """How something was used that lies in pages. Times are ticks of the clock of its group."""

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


class EvictionPolicy(ABC):
    """One order of eviction. Implementations keep no state."""

    @abstractmethod
    def priority(self, usage: Usage) -> Any:
        """A sortable value, asked whenever the last user leaves; the lowest goes first."""
