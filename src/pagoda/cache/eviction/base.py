"""The interface of an eviction policy.

A policy orders idle pages of the prefix tree and nothing else: that a used page, or one that those who continue it
need, never goes is the page group's rule, not the policy's.
"""

from abc import ABC, abstractmethod
from typing import Any

from pagoda.cache.radix import Node


class EvictionPolicy(ABC):
    """One order of eviction. Implementations keep no state."""

    @abstractmethod
    def priority(self, node: Node) -> Any:
        """A sortable value; the idle page with the lowest goes first."""
