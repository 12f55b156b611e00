"""How far a prompt can be resumed with pages that lie elsewhere, and where their bytes are to go.

A record is known here by the number of tokens that it begins or ends after. Plain data and pure functions: they can be
asked on any thread. Knows neither names nor tiers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from pagoda.cache.groups.rule import KeepRule
from pagoda.errors import OutOfPagesError

# Of a prefix so many pages are asked about at first, and each time so many times more: most prompts are new.
FIRST_ASKED = 4
MORE_ASKED = 8
# Which of the records of one group that end after so many tokens can be had.
Ask = Callable[[Sequence[int]], list[bool]]


class Fill(NamedTuple):
    """`pages` are to hold, one after the other, the bytes of the record that begins after `start` tokens.

    The record of a state begins where it ends; that of an encoder's output begins at 0.
    """

    start: int
    pages: tuple[int, ...]


class FillTarget(NamedTuple):
    """A sequence is to have its first `num_tokens`; records are `brought` for it that begin after so many tokens."""

    num_tokens: int
    brought: frozenset[int]

    def check_brings(self, *starts: int) -> None:
        """Raise OutOfPagesError unless it brings these: pages have gone since it was made."""
        if not self.brought.issuperset(starts):
            raise OutOfPagesError("Pages have gone that were to be continued; look the prompt up again.")


class Found(NamedTuple):
    """A record that can be had: it begins after `start` tokens and ends after `end`."""

    start: int
    end: int


class Reach(Protocol):
    """What one group has of a prompt."""

    def deepest(self, num_tokens: int, ask: Ask) -> int:
        """The deepest point up to `num_tokens` that can be resumed from with what `ask` finds."""

    def missing(self, num_tokens: int, ask: Ask) -> list[Found]:
        """What has to be brought to resume after `num_tokens`, which must be a point that `deepest` gives."""

    def of_nothing(self) -> Reach:
        """As if the pool had nothing of the prompt."""


class PagesHeld(NamedTuple):
    """The pool has `whole` pages of a prompt, and `partial_tokens` of the page after the first `num_path`."""

    whole: frozenset[int]
    num_path: int
    partial_tokens: int

    def tokens_of(self, index: int, page_tokens: int) -> int:
        """How many tokens it has of the page at `index`."""
        if index in self.whole:
            return page_tokens
        return self.partial_tokens if index == self.num_path else 0


@dataclass(frozen=True)
class PageReach:
    """Of a group that keeps pages by `rule`, for a prompt of `prompt_tokens`."""

    held: PagesHeld
    rule: KeepRule
    page_tokens: int
    prompt_tokens: int

    def deepest(self, num_tokens: int, ask: Ask) -> int:
        while num_tokens := self.rule.resumable_tokens(num_tokens):
            held = self._held_up_to(num_tokens)
            short = None if held == num_tokens else self._first_short(num_tokens, held, ask)
            if short is None:
                return num_tokens
            num_tokens = max(short, held)
        return 0

    def missing(self, num_tokens: int, ask: Ask) -> list[Found]:
        held = self._held_up_to(num_tokens)
        indices = [] if held == num_tokens else self._needed_beyond(held, num_tokens)
        return [Found(index * self.page_tokens, self._end(index, ask)) for index in indices]

    def of_nothing(self) -> PageReach:
        return replace(self, held=PagesHeld(frozenset(), 0, 0))

    def _held_up_to(self, num_tokens: int) -> int:
        """The deepest point up to `num_tokens` that can be resumed from with what the pool has."""
        size, point = self.page_tokens, num_tokens
        while point := self.rule.resumable_tokens(point):
            lacking = [
                index
                for index in self._needed(point)
                if self.held.tokens_of(index, size) < min(point - index * size, size)
            ]
            if not lacking:
                return point
            index = lacking[0] if self.rule.span is None else lacking[-1]
            point = index * size + (self.held.tokens_of(index, size) if self.rule.span is None else 0)
        return 0

    def _first_short(self, num_tokens: int, held: int, ask: Ask) -> int | None:
        """Where to look next, since something that is needed beyond what is held cannot be had; None if all can be."""
        size = self.page_tokens
        indices = self._needed_beyond(held, num_tokens)
        whole = [index for index in indices if (index + 1) * size <= self.prompt_tokens]
        have = self._found(whole, ask)
        lacking = [index for index in indices if index not in have]
        for index in lacking if self.rule.span is None else reversed(lacking):
            end = self._tail_end(index, ask)
            if end < num_tokens or index * size + size <= num_tokens:
                return end if index == indices[-1] or self.rule.span is None else index * size
        return None

    def _found(self, indices: Sequence[int], ask: Ask) -> set[int]:
        """Which whole pages can be had. Where windows do not move on, none is of use without those before it."""
        size, start, num_asked = self.page_tokens, 0, FIRST_ASKED if self.rule.span is None else len(indices)
        found: set[int] = set()
        while start < len(indices):
            some = indices[start : start + num_asked]
            answers = ask([(index + 1) * size for index in some])
            found |= {index for index, is_found in zip(some, answers, strict=True) if is_found}
            if not all(answers) and self.rule.span is None:
                break
            start, num_asked = start + num_asked, num_asked * MORE_ASKED
        return found

    def _end(self, index: int, ask: Ask) -> int:
        whole = (index + 1) * self.page_tokens
        return whole if whole <= self.prompt_tokens and ask([whole])[0] else self._tail_end(index, ask)

    def _tail_end(self, index: int, ask: Ask) -> int:
        """Where the longest tail ends that has the prompt's first tokens of a page; where the page begins if none."""
        first = index * self.page_tokens
        ends = range(min(first + self.page_tokens - 1, self.prompt_tokens), first, -1)
        return next((end for end, found in zip(ends, ask(ends), strict=True) if found), first)

    def _needed_beyond(self, held: int, num_tokens: int) -> list[int]:
        """Of the pages that are needed, those with tokens beyond the whole pages of the first `held`."""
        return [index for index in self._needed(num_tokens) if index >= held // self.page_tokens]

    def _needed(self, num_tokens: int) -> Sequence[int]:
        return needed_pages(self.rule, self.page_tokens, num_tokens, -(-num_tokens // self.page_tokens))


@dataclass(frozen=True)
class StateReach:
    """Of recurrent states: the pool has those after so many tokens (`held`)."""

    held: tuple[int, ...]

    # So many tokens are asked about at once, from the end: states are few and most are near it.
    STRIDE = 64

    def deepest(self, num_tokens: int, ask: Ask) -> int:
        held = max((each for each in self.held if each <= num_tokens), default=0)
        for last in range(num_tokens, held, -self.STRIDE):
            points = range(last, max(last - self.STRIDE, held), -1)
            for point, found in zip(points, ask(points), strict=True):
                if found:
                    return point
        return held

    def missing(self, num_tokens: int, ask: Ask) -> list[Found]:  # noqa: ARG002
        return [] if num_tokens in self.held or not num_tokens else [Found(num_tokens, num_tokens)]

    def of_nothing(self) -> StateReach:
        return StateReach(())


@dataclass(frozen=True)
class CrossReach:
    """Of an encoder's output, which no prefix depends on: it is `held`, or can be had, or is computed."""

    held: bool

    def deepest(self, num_tokens: int, ask: Ask) -> int:  # noqa: ARG002
        return num_tokens

    def missing(self, num_tokens: int, ask: Ask) -> list[Found]:  # noqa: ARG002
        return [] if self.held or not ask([0])[0] else [Found(0, 0)]

    def of_nothing(self) -> CrossReach:
        return CrossReach(False)


def first_page(rule: KeepRule, page_tokens: int, num_tokens: int) -> int:
    """The first page that a sequence of so many tokens keeps: what later ones need, and its last sealed page."""
    return max(min(rule.first_needed(num_tokens) // page_tokens, num_tokens // page_tokens - 1), 0)


def needed_pages(rule: KeepRule, page_tokens: int, num_tokens: int, stop: int) -> Sequence[int]:
    """Which of the first `stop` pages a sequence of so many tokens keeps, its sinks included."""
    first = first_page(rule, page_tokens, num_tokens)
    sinks = min(-(-rule.sink_tokens // page_tokens), first)
    return [*range(min(sinks, stop)), *range(first, stop)] if sinks else range(first, stop)
