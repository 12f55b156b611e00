"""The page table of one sequence in one layer group, and where others may want to resume from it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from pagoda.cache.holdings.accounts import Account
from pagoda.cache.prefix.held import NO_PAGE
from pagoda.cache.prefix.tree import Node


class ResumePoints(NamedTuple):
    """Where others may want to resume.

    After `branch_tokens` another sequence went its own way; the prompt ends after `prompt_tokens`. After each of
    `breakpoints` a lease is to end.
    """

    branch_tokens: int = 0
    prompt_tokens: int = 0
    breakpoints: tuple[int, ...] = ()

    @property
    def is_asked_again(self) -> bool:
        """Whether another sequence began with the whole prompt."""
        return self.branch_tokens >= self.prompt_tokens - 1


NOWHERE = ResumePoints()
NO_CELLS = array("i")


class PageTable:
    """The pages of one sequence in one layer group.

    The first `num_tokens // page_tokens` pages are sealed and stand on a path of the prefix tree that ends at `node`; a
    further page, if any, is open. Of the first `num_dropped` all but `num_sinks` lie behind the window and are NO_PAGE.
    Without prefix sharing `node` is None. Its pages are those of `account`.

    The sequence has `num_tokens`, all of which but `num_omitted` lie in the first `num_slots` slots of the pages. A
    table that `is_private` shares nothing that is written from then on. If the first pages are packed, `cell_starts`
    says which of their cells are whose (`GroupView`), and `num_omitted` is how many tokens a head lacks on average.
    """

    __slots__ = (
        *("account", "cell_starts", "is_private", "node", "num_dropped", "num_omitted", "num_sinks", "num_tokens"),
        *("pages", "resume_points"),
    )

    def __init__(
        self, account: Account, node: Node | None, num_dropped: int = 0, resume_points: ResumePoints = NOWHERE
    ) -> None:
        self.account = account
        self.node = node
        self.num_tokens = 0
        self.num_omitted = 0
        self.cell_starts = NO_CELLS
        self.is_private = False
        self.num_dropped = num_dropped
        self.num_sinks = 0
        self.resume_points = resume_points
        self.pages = array("i", [NO_PAGE] * num_dropped)

    @property
    def held(self) -> Sequence[int]:
        """The pages it still has."""
        return self.pages[: self.num_sinks] + self.pages[self.num_dropped :]

    @property
    def held_indices(self) -> list[int]:
        """Which pages of the sequence those are."""
        return [*range(self.num_sinks), *range(self.num_dropped, len(self.pages))]

    @property
    def num_slots(self) -> int:
        return self.num_tokens - self.num_omitted

    def num_slots_after(self, num_new_tokens: int) -> int:
        """How many slots are filled once so many tokens more are written."""
        return self.num_slots + num_new_tokens
