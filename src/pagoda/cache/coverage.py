"""The nodes of one group that leases keep.

A node counts the leases that cover it, and its pages are leased while there is one. Pages of a leased prefix that do
not stand in the tree yet are awaited: they are covered as soon as somebody seals them, and their place in the tenant's
budget is taken from the start. Knows nodes, accounts and the allocator; neither times nor who leased what.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pagoda.cache.accounts import Account
from pagoda.cache.pages import PageAllocator
from pagoda.cache.radix import NO_PAGE, Node
from pagoda.errors import IntegrityError


class Prefix(NamedTuple):
    """Of a prefix of `num_tokens` tokens: pages must be held from where a sequence of `page_tokens` needs them.

    Recurrent states are to be held after `state_tokens`.
    """

    key: bytes
    num_tokens: int
    page_tokens: int
    state_tokens: int


class CoverPlan(NamedTuple):
    """The `nodes` to keep, and the token `runs` of further pages, of which the first is awaited below `parent`."""

    account: Account
    nodes: Sequence[Node]
    parent: Node | None = None
    runs: Sequence[bytes] = ()


class Coverage:
    """What one lease keeps in one group. `is_broken` once pages had to go whose content was in doubt.

    While pages are awaited they are so below `anchor`; a last page that is short may be replaced there.
    """

    __slots__ = ("account", "anchor", "is_broken", "nodes", "runs")

    def __init__(self, plan: CoverPlan) -> None:
        self.account = plan.account
        self.nodes = list(plan.nodes)
        self.runs = deque(plan.runs)
        self.anchor = plan.parent
        self.is_broken = False

    @property
    def num_pages(self) -> int:
        """Held and awaited."""
        return sum(len(node.pages) for node in self.nodes) + len(self.runs)


class Coverages:
    """All leases over one group; `offer` enters a node for eviction if it may go. Without `share` nothing is held."""

    def __init__(self, allocator: PageAllocator, offer: Callable[[Node], None], share: bool) -> None:
        self._share = share
        self._allocator = allocator
        self._offer = offer
        self._live: set[Coverage] = set()
        self._anchored: dict[Node, list[Coverage]] = {}

    def cost(self, plan: CoverPlan, old: Coverage | None = None) -> int:
        """How many pages more would be leased, if this takes the place of `old`."""
        new = sum(len(node.pages) for node in plan.nodes if not node.num_leases)
        return new + len(plan.runs) - (len(old.runs) if old is not None else 0)

    def fits(self, plan: CoverPlan, old: Coverage | None = None) -> bool:
        """Whether the tenant's budget has room for it, and can do without what is idle of it."""
        account = plan.account
        idle = [node for node in plan.nodes if not any(map(self._allocator.is_pinned, node.pages))]
        num_idle = sum(len(node.pages) for node in idle)
        return self._share and (
            self.cost(plan, old) <= account.lease_limit - account.num_leased
            and num_idle <= self._allocator.available_to(account)
        )

    def keep(self, plan: CoverPlan) -> Coverage:
        coverage = Coverage(plan)
        for node in coverage.nodes:
            self._cover(node, coverage.account)
        coverage.account.num_leased += len(coverage.runs)
        self._live.add(coverage)
        self._anchor(coverage, plan.parent)
        return coverage

    def end(self, coverage: Coverage) -> None:
        """What no other lease covers may be evicted. Ending twice is fine: a broken one has ended before its lease."""
        if coverage not in self._live:
            return
        self._live.remove(coverage)
        self._anchor(coverage, None)
        coverage.account.num_leased -= len(coverage.runs)
        for node in reversed(coverage.nodes):
            self._uncover(node, coverage.account)

    def sealed(self, parent: Node, node: Node) -> None:
        """A page now stands at `node` below `parent`: it may be awaited, or hold more than a short one there."""
        for coverage in list(self._anchored.get(parent, ())) if self._anchored else ():
            if coverage.runs:
                if node.key.startswith(coverage.runs[0]):
                    self._advance(coverage, node)
            elif node is not coverage.nodes[-1] and node.key.startswith(coverage.nodes[-1].key):
                self._replace_last(coverage, node)

    def break_over(self, node: Node) -> None:
        """End every lease that covers `node`, whose content is in doubt."""
        for coverage in [each for each in self._live if node in each.nodes] if node.num_leases else ():
            coverage.is_broken = True
            self.end(coverage)

    def check_integrity(self, nodes: Sequence[Node], accounts: Sequence[Account]) -> None:
        """Raise IntegrityError unless `nodes`, all there are, count the leases that cover them."""
        covering = Counter(node for coverage in self._live for node in coverage.nodes)
        if any(node.num_leases != covering[node] for node in nodes) or covering.keys() - set(nodes):
            raise IntegrityError("A node counts other leases than those that cover it.")
        for node in nodes:
            if any(self._allocator.is_leased(page) != bool(node.num_leases) for page in node.pages if page != NO_PAGE):
                raise IntegrityError(f"Page {node.page} is leased and no lease covers it, or the other way round.")
        for account in accounts:
            own = [coverage for coverage in self._live if coverage.account is account]
            held = {node: len(node.pages) for coverage in own for node in coverage.nodes}
            leased = sum(held.values()) + sum(len(coverage.runs) for coverage in own)
            if leased != account.num_leased or leased > account.lease_limit:
                raise IntegrityError(
                    f"Leases keep {leased} pages; the account says {account.num_leased} of {account.lease_limit}."
                )

    def _advance(self, coverage: Coverage, node: Node | None) -> None:
        """The first awaited page stands at `node`, and maybe more of them below it."""
        while node is not None:
            self._cover(node, coverage.account)
            coverage.account.num_leased -= 1
            coverage.nodes.append(node)
            coverage.runs.popleft()
            parent = node
            node = _child(parent, coverage.runs[0]) if coverage.runs else None
        self._anchor(coverage, parent if coverage.runs else parent.parent)

    def _replace_last(self, coverage: Coverage, node: Node) -> None:
        shorter = coverage.nodes[-1]
        coverage.nodes[-1] = node
        self._cover(node, coverage.account)
        self._uncover(shorter, coverage.account)

    def _anchor(self, coverage: Coverage, anchor: Node | None) -> None:
        if coverage.anchor is not None and coverage in (listed := self._anchored.get(coverage.anchor, [])):
            listed.remove(coverage)
            if not listed:
                del self._anchored[coverage.anchor]
        coverage.anchor = anchor
        if anchor is not None:
            self._anchored.setdefault(anchor, []).append(coverage)

    def _cover(self, node: Node, account: Account) -> None:
        node.num_leases += 1
        if node.num_leases == 1:
            account.num_leased += len(node.pages)
            for page in node.pages:
                self._allocator.lease(page)

    def _uncover(self, node: Node, account: Account) -> None:
        node.num_leases -= 1
        if not node.num_leases:
            account.num_leased -= len(node.pages)
            for page in node.pages:
                self._allocator.unlease(page)
            self._offer(node)


def _child(node: Node, run: bytes) -> Node | None:
    """A child that holds the tokens of `run`, if there is one."""
    return next((each for each in node.children.values() if each.page != NO_PAGE and each.key.startswith(run)), None)
