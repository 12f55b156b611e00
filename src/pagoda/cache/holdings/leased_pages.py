"""What leases keep of one group.

What is held counts the leases that keep it, and its pages are leased while there is one. Pages of a leased prefix that
do not stand in the tree yet are awaited: they are kept as soon as somebody seals them, and their place in the tenant's
budget is taken from the start. Knows accounts and the allocator; neither times nor who leased what.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pagoda.cache.holdings.accounts import Account
from pagoda.cache.holdings.allocator import PageAllocator
from pagoda.cache.prefix.held import NO_PAGE, Held
from pagoda.cache.prefix.tree import Node
from pagoda.errors import IntegrityError


class Prefix(NamedTuple):
    """Of a prefix of `num_tokens` tokens: pages must be held from where a sequence of `page_tokens` needs them.

    Recurrent states are to be held after `state_tokens`.
    """

    key: bytes
    num_tokens: int
    page_tokens: int
    state_tokens: int


class HoldPlan(NamedTuple):
    """What is `kept`, and the token `runs` of further pages, of which the first is awaited below `parent`."""

    account: Account
    kept: Sequence[Held]
    parent: Node | None = None
    runs: Sequence[bytes] = ()


class LeaseHold:
    """What one lease keeps in one group. `is_broken` once pages had to go whose content was in doubt.

    While pages are awaited they are so below `anchor`; a last page that is short may be replaced there.
    """

    __slots__ = ("account", "anchor", "is_broken", "kept", "runs")

    def __init__(self, plan: HoldPlan) -> None:
        self.account = plan.account
        self.kept = list(plan.kept)
        self.runs = deque(plan.runs)
        self.anchor = plan.parent
        self.is_broken = False

    @property
    def num_pages(self) -> int:
        """Held and awaited."""
        return sum(len(held.pages) for held in self.kept) + len(self.runs)


class LeasedPages:
    """All leases over one group; `make_evictable` enters for eviction what may go. Without `share` nothing is held.

    Those that await pages, or may get a longer one, are listed in `anchored` by the node above it.
    """

    def __init__(self, allocator: PageAllocator, make_evictable: Callable[[Held], None], share: bool) -> None:
        self._share = share
        self._allocator = allocator
        self._make_evictable = make_evictable
        self._live: set[LeaseHold] = set()
        self.anchored: dict[Node, list[LeaseHold]] = {}

    def cost(self, plan: HoldPlan, old: LeaseHold | None = None) -> int:
        """How many pages more would be leased, if this takes the place of `old`."""
        new = sum(len(held.pages) for held in plan.kept if not held.num_leases)
        return new + len(plan.runs) - (len(old.runs) if old is not None else 0)

    def fits(self, plan: HoldPlan, old: LeaseHold | None = None) -> bool:
        """Whether the tenant's budget has room for it, and can do without what is idle of it."""
        account = plan.account
        idle = [held for held in plan.kept if not any(map(self._allocator.is_pinned, held.pages))]
        num_idle = sum(len(held.pages) for held in idle)
        return self._share and (
            self.cost(plan, old) <= account.lease_limit - account.num_leased
            and num_idle <= self._allocator.available_to(account)
        )

    def keep(self, plan: HoldPlan) -> LeaseHold:
        hold = LeaseHold(plan)
        for held in hold.kept:
            self._cover(held, hold.account)
        hold.account.num_leased += len(hold.runs)
        self._live.add(hold)
        self._anchor(hold, plan.parent)
        return hold

    def end(self, hold: LeaseHold) -> None:
        """What no other lease covers may be evicted. Ending twice is fine: a broken one has ended before its lease."""
        if hold not in self._live:
            return
        self._live.remove(hold)
        self._anchor(hold, None)
        hold.account.num_leased -= len(hold.runs)
        for held in reversed(hold.kept):
            self._uncover(held, hold.account)

    def sealed(self, parent: Node, node: Node) -> None:
        """A page now stands at `node` below `parent`: it may be awaited, or hold more than a short one there."""
        for hold in list(self.anchored.get(parent, ())):
            if hold.runs:
                if node.key.startswith(hold.runs[0]):
                    self._advance(hold, node)
            elif node is not hold.kept[-1] and node.key.startswith(hold.kept[-1].key):
                self._replace_last(hold, node)

    def break_over(self, held: Held) -> None:
        """End every lease that keeps `held`, whose content is in doubt."""
        for hold in [each for each in self._live if held in each.kept] if held.num_leases else ():
            hold.is_broken = True
            self.end(hold)

    def check_integrity(self, things: Sequence[Held], accounts: Sequence[Account]) -> None:
        """Raise IntegrityError unless `things`, all that are held, count the leases that keep them."""
        keeping = Counter(held for hold in self._live for held in hold.kept)
        if any(held.num_leases != keeping[held] for held in things) or keeping.keys() - set(things):
            raise IntegrityError("Something counts other leases than those that keep it.")
        for held in things:
            if any(self._allocator.is_leased(page) != bool(held.num_leases) for page in held.pages):
                raise IntegrityError(f"Page {held.page} is leased and no lease keeps it, or the other way round.")
        for account in accounts:
            own = [hold for hold in self._live if hold.account is account]
            kept = {held: len(held.pages) for hold in own for held in hold.kept}
            leased = sum(kept.values()) + sum(len(hold.runs) for hold in own)
            if leased != account.num_leased or leased > account.lease_limit:
                raise IntegrityError(
                    f"Leases keep {leased} pages; the account says {account.num_leased} of {account.lease_limit}."
                )

    def _advance(self, hold: LeaseHold, node: Node | None) -> None:
        """The first awaited page stands at `node`, and maybe more of them below it."""
        while node is not None:
            self._cover(node, hold.account)
            hold.account.num_leased -= 1
            hold.kept.append(node)
            hold.runs.popleft()
            parent = node
            node = _child(parent, hold.runs[0]) if hold.runs else None
        self._anchor(hold, parent if hold.runs else parent.parent)

    def _replace_last(self, hold: LeaseHold, node: Node) -> None:
        shorter = hold.kept[-1]
        hold.kept[-1] = node
        self._cover(node, hold.account)
        self._uncover(shorter, hold.account)

    def _anchor(self, hold: LeaseHold, anchor: Node | None) -> None:
        if hold.anchor is not None and hold in (listed := self.anchored.get(hold.anchor, [])):
            listed.remove(hold)
            if not listed:
                del self.anchored[hold.anchor]
        hold.anchor = anchor
        if anchor is not None:
            self.anchored.setdefault(anchor, []).append(hold)

    def _cover(self, held: Held, account: Account) -> None:
        held.num_leases += 1
        if held.num_leases == 1:
            held.idle_entry = None
            account.num_leased += len(held.pages)
            for page in held.pages:
                self._allocator.lease(page)

    def _uncover(self, held: Held, account: Account) -> None:
        held.num_leases -= 1
        if not held.num_leases:
            account.num_leased -= len(held.pages)
            for page in held.pages:
                self._allocator.unlease(page)
            self._make_evictable(held)


def _child(node: Node, run: bytes) -> Node | None:
    """A child that holds the tokens of `run`, if there is one."""
    return next((each for each in node.children.values() if each.page != NO_PAGE and each.key.startswith(run)), None)
