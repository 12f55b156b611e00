"""What the cache asks of a layer group, and the point from which several of them resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pagoda.cache.accounts import Account, Accounts
from pagoda.cache.coverage import Coverages, CoverPlan, Prefix
from pagoda.cache.group import PageActions
from pagoda.cache.namespace import Namespace
from pagoda.cache.outline import Outline
from pagoda.cache.pages import Milestones, PageCounts
from pagoda.cache.radix import Watcher


class CacheGroup(Protocol):
    """What one layer group answers: `PageGroup` for pages of tokens, `StateGroup` for recurrent states, `CrossGroup`.

    The latter's are outputs of encoders, which are no prefixes. Matches and tables are each group's own; costs are in
    pages. A table that has been released, or in part, may be released again. So many pages were evicted to make room
    (`num_evictions`) and because what is in them was in doubt.
    """

    page_tokens: int
    keeps_all: bool
    resumes_anywhere: bool
    holds_prefixes: bool
    accounts: Accounts
    leases: Coverages

    @property
    def num_evictions(self) -> int: ...

    @property
    def num_doubted(self) -> int: ...

    @property
    def counts(self) -> PageCounts: ...

    def watch(self, watcher: Watcher) -> None: ...

    def page_states(self, stride: int) -> bytes: ...

    def outline(self, most: int, most_tokens: int, tenant: str | None) -> list[Outline]: ...

    def available_to(self, account: Account) -> int: ...

    def match(self, namespace: Namespace, key: bytes) -> Any: ...

    def matched_tokens(self, match: Any) -> int: ...

    def resumable(self, match: Any, num_tokens: int) -> int: ...

    def attach_cost(self, match: Any, num_tokens: int) -> int: ...

    def growth_cost(self, num_tokens: int, num_new_tokens: int, step_tokens: int) -> int: ...

    def spare_pages(self, num_sequences: int) -> int: ...

    def attach(
        self, namespace: Namespace, match: Any, num_tokens: int, milestones: Milestones
    ) -> tuple[Any, PageActions]: ...

    def reserve_cost(self, table: Any, num_tokens: int) -> int: ...

    def reserve(self, table: Any, num_tokens: int) -> PageActions: ...

    def commit(self, table: Any, tokens: Sequence[int], num_tokens: int) -> None: ...

    def fork(self, table: Any) -> Any: ...

    def release(self, table: Any, tokens: Sequence[int], keep: bool) -> None: ...

    def next_page(self, namespace: Namespace, match: Any, tokens: Sequence[int]) -> object | None: ...

    def page_being_written(self, namespace: Namespace, table: Any, tokens: Sequence[int]) -> object | None: ...

    def lease_plan(self, namespace: Namespace, match: Any, prefix: Prefix) -> CoverPlan: ...

    def reset(self) -> int: ...

    def check_integrity(self, tables: Sequence[Any]) -> None: ...


def resumable(held: Sequence[tuple[CacheGroup, Any]], num_tokens: int, multiple: int = 1) -> int:
    """The deepest point up to `num_tokens`, a multiple of `multiple`, where every group can resume its match."""
    while True:
        num_tokens -= num_tokens % multiple
        deepest = min((group.resumable(match, num_tokens) for group, match in held), default=num_tokens)
        if deepest == num_tokens:
            return num_tokens
        num_tokens = deepest
