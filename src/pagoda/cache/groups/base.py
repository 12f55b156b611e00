"""What the cache asks of a layer group, and the point from which several of them resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pagoda.cache.groups.fill import Fill, FillTarget, Reach
from pagoda.cache.groups.table import ResumePoints
from pagoda.cache.holdings.holdings import Holdings
from pagoda.cache.holdings.leased_pages import HoldPlan, Prefix
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.prefix.snapshots import Snapshots

if TYPE_CHECKING:
    from pagoda.cache.groups.prefixes import Prefixes


class PageActions(NamedTuple):
    """What must happen to the bytes: `fresh` pages hold nothing yet, then each copy is (from, to)."""

    fresh: Sequence[int]
    copies: Sequence[tuple[int, int]]


NO_ACTIONS = PageActions([], [])


class Match(Protocol):
    """What a group holds of a prompt: its first `num_tokens`, and so many that an encoder has read, or will have read
    once it `is_arriving` no more.
    """

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_encoder_tokens(self) -> int: ...

    @property
    def is_arriving(self) -> bool: ...


class CacheGroup(Protocol):
    """What one layer group answers: `PageGroup` for pages of tokens, `StateGroup` for recurrent states, `CrossGroup`
    for what encoders made, which is no prefix.

    What it keeps is in `holdings`, found through `prefixes` page by page, or through `snapshots` where states were
    copied. Matches and tables are each group's own; costs are in pages. A table that has been released, or in part, may
    be released again.
    """

    @property
    def page_tokens(self) -> int: ...

    @property
    def holdings(self) -> Holdings: ...

    @property
    def prefixes(self) -> Prefixes | None: ...

    @property
    def snapshots(self) -> Snapshots | None: ...

    def match(self, namespace: Namespace, key: bytes) -> Match: ...

    def resumable(self, match: Any, num_tokens: int) -> int: ...

    def attach_cost(self, match: Any, num_tokens: int) -> int: ...

    def growth_cost(self, num_tokens: int, num_new_tokens: int, step_tokens: int) -> int: ...

    def attach(
        self, namespace: Namespace, match: Any, num_tokens: int, points: ResumePoints
    ) -> tuple[Any, PageActions]: ...

    def pages_of(self, match: Any, start: int) -> tuple[int, ...]: ...

    def reach(self, match: Any, num_tokens: int) -> Reach: ...

    def attach_to_fill(
        self, namespace: Namespace, match: Any, target: FillTarget, points: ResumePoints
    ) -> tuple[Any, PageActions, list[Fill]]: ...

    def filled(self, table: Any, tokens: Sequence[int], num_tokens: int) -> None: ...

    def reserve_cost(self, table: Any, num_tokens: int) -> int: ...

    def reserve(self, table: Any, num_tokens: int) -> PageActions: ...

    def commit(self, table: Any, tokens: Sequence[int], num_tokens: int) -> None: ...

    def fork(self, table: Any) -> Any: ...

    def detach(self, table: Any) -> None: ...

    def release(self, table: Any, tokens: Sequence[int], keep: bool) -> None: ...

    def plan_lease(self, namespace: Namespace, match: Any, prefix: Prefix) -> HoldPlan: ...

    def check_integrity(self, tables: Sequence[Any]) -> None: ...


def resumable(held: Sequence[tuple[CacheGroup, Any]], num_tokens: int, multiple: int = 1) -> int:
    """The deepest point up to `num_tokens`, a multiple of `multiple`, where every group can resume its match."""
    while True:
        num_tokens -= num_tokens % multiple
        deepest = num_tokens
        for group, match in held:
            deepest = min(deepest, group.resumable(match, num_tokens))
        if deepest == num_tokens:
            return num_tokens
        num_tokens = deepest
