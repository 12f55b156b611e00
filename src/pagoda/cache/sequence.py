"""One sequence over all layer groups: what it hits, its page tables, and what pages it takes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagoda.cache.groups.base import CacheGroup
from pagoda.cache.groups.compacted import Compacted
from pagoda.cache.groups.fill import Found
from pagoda.cache.groups.table import NO_CELLS
from pagoda.cache.prefix.namespace import Namespace

NONE_COMPACTED: Mapping[int, Compacted] = MappingProxyType({})


class Hit(NamedTuple):
    """A match in every group, and the tokens all of them can resume from. Valid until the cache changes.

    `branch_tokens` are known to some group: another sequence went its own way there. `num_encoder_tokens` are held of
    the encoder's output. `key` is the tokens that were asked for. Groups of the indices in `compacted` are resumed from
    what the tokens were compressed to, instead of what they match.
    """

    namespace: Namespace
    key: bytes
    matches: tuple[Any, ...]
    num_tokens: int
    branch_tokens: int
    num_encoder_tokens: int
    compacted: Mapping[int, Compacted] = NONE_COMPACTED

    @property
    def is_arriving(self) -> bool:
        """Whether what an encoder made is being brought from a tier, and has to be waited for."""
        return any(match.is_arriving for match in self.matches)


class Kept(NamedTuple):
    """What is left to a sequence in one group: `num_slots` of its tokens, in pages of these bytes.

    They are packed if there are `cell_starts` (`PageTable`).
    """

    num_slots: int
    bodies: NDArray[np.uint8]
    cell_starts: array[int] = NO_CELLS


@dataclass(eq=False)
class CachedSequence:
    """The page tables of one sequence, one per group."""

    namespace: Namespace
    tables: tuple[Any, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens whose keys and values are in the pages, and which the states have seen."""
        return int(self.tables[0].num_tokens)


def attach_costs(
    groups: Sequence[CacheGroup], hit: Hit, num_new_tokens: int, step_tokens: int | None = None
) -> list[int]:
    """Pages that it takes in each group to attach to `hit` and go on, so many tokens at a time (None: all at once)."""
    step_tokens = num_new_tokens if step_tokens is None else step_tokens
    costs = list[int]()
    for index, (group, match) in enumerate(zip(groups, hit.matches, strict=True)):
        compacted, num_slots = hit.compacted.get(index), hit.num_tokens
        if compacted is None:
            cost = group.attach_cost(match, hit.num_tokens)
        else:
            cost, num_slots = compacted.shelf.attach_cost(compacted), compacted.num_slots
        costs.append(cost + group.growth_cost(num_slots, num_new_tokens, step_tokens))
    return costs


def needed_records(group: CacheGroup, match: Any, num_tokens: int) -> list[Found]:
    """What a sequence of so many tokens, all of them held, has in one group, as if nothing else held it."""
    size = group.page_tokens
    reach = group.reach(match, num_tokens).of_nothing()
    return reach.missing(
        num_tokens, lambda ends: [end == num_tokens or (end < num_tokens and end % size == 0) for end in ends]
    )


def short_groups(groups: Sequence[CacheGroup], sequence: CachedSequence, num_tokens: int) -> Iterator[CacheGroup]:
    """Those without the pages for `num_tokens` more."""
    for group, table in zip(groups, sequence.tables, strict=True):
        if group.reserve_cost(table, num_tokens) > group.holdings.available_to(table.account):
            yield group
