"""What lies in pages and goes as one: a page of tokens, a snapshot of a state, the output of an encoder.

Knows how it was used, which is all that an eviction policy is told, and who has leased it. Does not know what it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import Any, Protocol

# Of what has no page: roots, nodes whose page was evicted while others continue them, and what is gone.
NO_PAGE = -1


class Reason(StrEnum):
    """Why pages were given up."""

    ROOM = "room"  # somebody else needed them
    SUPERSEDED = "superseded"  # a longer page holds the same tokens
    DOUBT = "doubt"  # what is in them may be wrong
    RESET = "reset"  # the cache was told to forget
    EXPIRED = "expired"  # nobody has used it for as long as it may lie


class Shelf(Protocol):
    """Where the things stand that one group holds."""

    def is_continued(self, held: Any) -> bool:
        """Whether others stand on it that could not be found without it."""

    def removed(self, held: Any, reason: Reason) -> None:
        """It is evicted: from now on nobody must find it. Its pages, which `held` still names, are free after that."""


class Held(ABC):
    """What `page`, and maybe others (`pages`), hold, found by `key`. NO_PAGE once it is gone.

    Times are ticks of its group's clock. What `is_spent` has had its use, unless another sequence comes. `num_hits`
    sequences have begun with it, and `num_leases` keep it. While it may be evicted, `idle_entry` is its place in the
    order in which that happens; `note` is what the policy of that order remembers of it. If it has a `shelf` of its
    own, beside that of all else in its group, this cache alone knows of it: tiers hear nothing.
    """

    __slots__ = ("first_used", "idle_entry", "key", "last_used", "note", "num_hits", "num_leases", "page")

    is_spent: bool = False
    shelf: Shelf | None = None

    def __init__(self, key: bytes, page: int, first_used: int = 0) -> None:
        self.key = key
        self.page = page
        self.first_used = first_used
        self.last_used = 0
        self.num_hits = 0
        self.num_leases = 0
        self.idle_entry: tuple[Any, int, Held] | None = None
        self.note: Any = None

    @property
    def pages(self) -> tuple[int, ...]:
        """All pages that go when it is evicted."""
        return (self.page,)

    @property
    def num_pages(self) -> int:
        return len(self.pages)

    @property
    @abstractmethod
    def recompute_tokens(self) -> int:
        """How many tokens have to be computed if it is gone."""

    @property
    @abstractmethod
    def fingerprint(self) -> int:
        """A hash of all that decides what it holds, within this process: known again when the same is held again."""
