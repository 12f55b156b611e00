"""The recurrent states of running sequences, and the snapshots from which others resume.

A pool of slots, each as large as the whole state of one sequence. A running sequence has one slot, which every step
overwrites. Copies are made, inside a step, where another sequence may want to go on: just before the end of a prompt,
where prompts were seen to part, and every so many tokens; the last state of an ended sequence stays as it is. Once a
sequence has gone on from a snapshot, those before it on the way, and then the snapshot itself, are the first to be
evicted, unless several have resumed there. Answers the same questions as `PageGroup`. Knows token ids and counts;
moving bytes is left to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.eviction.resumed import Resumed
from pagoda.cache.groups.base import PageActions
from pagoda.cache.groups.fill import Fill, FillTarget, StateReach
from pagoda.cache.groups.table import PageTable, ResumePoints
from pagoda.cache.holdings.accounts import Account
from pagoda.cache.holdings.holdings import Holdings
from pagoda.cache.holdings.leased_pages import HoldPlan, Prefix
from pagoda.cache.prefix.held import NO_PAGE, Reason
from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.prefix.snapshots import Snapshot, Snapshots
from pagoda.config import NO_TENANTS, TenantShare

# How fast it is forgotten how prompts began.
BALANCE_DECAY = 0.9
SLOTS = "slots for recurrent states"


@dataclass(frozen=True)
class SnapshotRule:
    """Where states are copied: every `interval_tokens` (None: nowhere), where leases end, and where prompts part.

    The last at the last multiple of `branch_multiple` before, since tokens after it may agree by chance.
    """

    interval_tokens: int | None
    branch_multiple: int

    def points(self, start: int, stop: int, resume_points: ResumePoints) -> list[int]:
        """The numbers of tokens above `start`, up to `stop`, after which the state should be copied, in order."""
        ends = (self.branch(resume_points), resume_points.prompt_tokens - 1)
        # Nobody resumes after the last token of the prompt, which is computed anew, but just before it.
        leased = (min(point, resume_points.prompt_tokens - 1) for point in resume_points.breakpoints)
        points = {point for point in (*ends, *leased) if start < point <= stop}
        if self.interval_tokens is not None:
            first = (start // self.interval_tokens + 1) * self.interval_tokens
            points |= set(range(first, stop + 1, self.interval_tokens))
        return sorted(points)

    def branch(self, resume_points: ResumePoints) -> int:
        """Where prompts part, for sure; nowhere if the whole prompt is known."""
        if resume_points.is_asked_again:
            return 0
        return resume_points.branch_tokens - resume_points.branch_tokens % self.branch_multiple


class StateMatch(NamedTuple):
    """The snapshots on the way through a prompt, the shortest first."""

    snapshots: Sequence[Snapshot]

    @property
    def num_tokens(self) -> int:
        return self.snapshots[-1].num_tokens if self.snapshots else 0

    @property
    def num_encoder_tokens(self) -> int:
        return 0

    @property
    def is_arriving(self) -> bool:
        return False

    def after(self, num_tokens: int) -> Snapshot | None:
        """The snapshot after exactly so many tokens."""
        return next((each for each in self.snapshots if each.num_tokens == num_tokens), None)


class StateTable(PageTable):
    """The slot of one sequence, as its only page, and the copies to be made in the next step: (tokens, slot).

    `source` is the snapshot it began with.
    """

    __slots__ = ("cuts", "namespace", "source")

    def __init__(self, account: Account, namespace: Namespace, resume_points: ResumePoints) -> None:
        super().__init__(account, None, resume_points=resume_points)
        self.namespace = namespace
        self.cuts: list[tuple[int, int]] = []
        self.source: Snapshot | None = None


class StateGroup:
    """Slots of states over one pool. With `share` off no snapshot is ever kept."""

    page_tokens = 1
    prefixes = None

    def __init__(
        self,
        num_slots: int,
        policy: EvictionPolicy,
        rule: SnapshotRule,
        share: bool = True,
        tenants: Mapping[str, TenantShare] = NO_TENANTS,
    ) -> None:
        self.snapshots = Snapshots()
        self.holdings = Holdings(num_slots, Resumed(policy, num_slots), self, share, tenants, SLOTS)
        self._rule = rule
        self._share = share
        self._answers_return = 0.0  # positive if prompts go on from answers more often than they are asked again

    def match(self, namespace: Namespace, key: bytes) -> StateMatch:
        """The snapshots on the way through the tokens in `key`."""
        return StateMatch(self.snapshots.match(namespace, key))

    def resumable(self, match: StateMatch, num_tokens: int) -> int:
        """The deepest snapshot within the first `num_tokens` tokens."""
        return max((each.num_tokens for each in match.snapshots if each.num_tokens <= num_tokens), default=0)

    def attach_cost(self, match: StateMatch, num_tokens: int) -> int:
        """A slot, and the snapshot, which must not be evicted before it is copied."""
        snapshot = match.after(num_tokens)
        return 1 + (snapshot is not None and not self.holdings.allocator.is_pinned(snapshot.page))

    def growth_cost(self, num_tokens: int, num_new_tokens: int, step_tokens: int) -> int:  # noqa: ARG002
        """A state does not grow."""
        return 0

    def attach(
        self, namespace: Namespace, match: StateMatch, num_tokens: int, points: ResumePoints
    ) -> tuple[StateTable, PageActions]:
        """A slot that starts as a copy of the snapshot after `num_tokens`, if there are any.

        Raises OutOfPagesError, changing nothing, if there is no slot.
        """
        holdings = self.holdings
        account = holdings.account_of(namespace)
        holdings.check_available(self.attach_cost(match, num_tokens), account)
        table = StateTable(account, namespace, points)
        holdings.tick()
        if points.branch_tokens:
            self._answers_return = BALANCE_DECAY * self._answers_return + (-1 if points.is_asked_again else 1)
        snapshot = match.after(num_tokens)
        if snapshot is None:
            table.pages.extend(slots := holdings.allocate(1, account))
            return table, PageActions(slots, [])
        holdings.hit((snapshot,))
        snapshot.is_spent = False
        source = snapshot.page
        holdings.use((snapshot,))  # not to be evicted to make room for its own copy
        try:
            slots = holdings.allocate(1, account)
        finally:
            holdings.leave(snapshot)
        self._spend([each for each in match.snapshots if each.num_tokens < num_tokens])
        table.source = snapshot
        table.pages.extend(slots)
        table.num_tokens = num_tokens
        return table, PageActions(slots, [(source, slots[0])])

    def pages_of(self, match: StateMatch, start: int) -> tuple[int, ...]:
        """The slot of the snapshot after `start` tokens."""
        snapshot = match.after(start)
        assert snapshot is not None
        return snapshot.pages

    def reach(self, match: StateMatch, num_tokens: int) -> StateReach:  # noqa: ARG002
        return StateReach(tuple(each.num_tokens for each in match.snapshots))

    def attach_to_fill(
        self, namespace: Namespace, match: StateMatch, target: FillTarget, points: ResumePoints
    ) -> tuple[StateTable, PageActions, list[Fill]]:
        """A slot that is to be filled with the state after `target`, and one to keep that in, if there is room."""
        num_tokens = target.num_tokens
        if not num_tokens or match.after(num_tokens) is not None:
            return *self.attach(namespace, match, num_tokens, points), []
        target.check_brings(num_tokens)
        table, actions = self.attach(namespace, StateMatch(()), 0, points)
        fresh = [*actions.fresh]
        if self.holdings.available_to(table.account):
            [slot] = self.holdings.allocate(1, table.account)
            table.cuts.append((num_tokens, slot))
            fresh.append(slot)
        return table, PageActions(fresh, []), [Fill(num_tokens, (slot,)) for slot in fresh]

    def filled(self, table: StateTable, tokens: Sequence[int], num_tokens: int) -> None:
        """The slots hold the state after the first `num_tokens` of `tokens` now."""
        if table.num_tokens < num_tokens:
            self.commit(table, tokens, num_tokens)

    def reserve_cost(self, table: PageTable, num_tokens: int) -> int:  # noqa: ARG002
        """A slot of its own, if it shares one with a fork."""
        return int(self._must_copy(table))

    def reserve(self, table: StateTable, num_tokens: int) -> PageActions:
        """Make sure that nobody else has the slot, and find room for the copies of the next `num_tokens` tokens.

        A copy for which there is no room is not made. Raises OutOfPagesError, changing nothing, if the slot is shared
        and there is no other.
        """
        fresh: list[int] = []
        copies: list[tuple[int, int]] = []
        if self._must_copy(table):
            fresh = self.holdings.allocate(1, table.account)
            copies = [(table.pages[0], fresh[0])]
            self.holdings.allocator.release(table.pages[0])
            table.pages[0] = fresh[0]
        if self._share and not table.is_private:
            fresh += self._reserve_cuts(table, num_tokens)
        return PageActions(fresh, copies)

    def commit(self, table: StateTable, tokens: Sequence[int], num_tokens: int) -> None:
        """The state is that after the first `num_tokens` of `tokens` now, and the copies of this step are made."""
        self.holdings.tick()
        while table.cuts:
            point, slot = table.cuts[0]
            # Where prompts part another sequence has gone on before.
            num_hits = int(point == self._rule.branch(table.resume_points))
            self._keep(table.namespace, token_key(tokens[:point]), slot, num_hits)
            del table.cuts[0]
        table.num_tokens = num_tokens

    def fork(self, table: StateTable) -> StateTable:
        """A second table of the same state, copied by whoever goes on first."""
        twin = StateTable(table.account, table.namespace, table.resume_points)
        twin.num_tokens = table.num_tokens
        twin.is_private = table.is_private
        twin.pages = table.pages[:]
        self.holdings.allocator.retain(table.pages[0])
        return twin

    def detach(self, table: StateTable) -> None:
        """What the state becomes from now on does not follow from the tokens alone: copy it for nobody."""
        table.is_private = True

    def release(self, table: StateTable, tokens: Sequence[int] = (), keep: bool = True) -> None:
        """Give up the slot of a sequence, whose tokens are `tokens`.

        Its state stays as a snapshot; without `keep` it goes now, and so do all snapshots on the way to it, whose
        leases end.
        """
        self.holdings.tick()
        while table.cuts:
            self.holdings.allocator.release(table.cuts.pop()[1])
        has_end = keep and self._share and not table.is_private and table.num_tokens and tokens
        if has_end and table.pages and self.holdings.allocator.references(table.pages[0]) == 1:
            self._keep_end(table, tokens)
        while table.pages:
            self.holdings.allocator.release(table.pages.pop())
        if not keep:
            for snapshot in self.snapshots.match(table.namespace, token_key(tokens[: table.num_tokens])):
                self.holdings.leases.break_over(snapshot)
                self.holdings.evict(snapshot, Reason.DOUBT)
        table.num_tokens = 0

    def plan_lease(self, namespace: Namespace, match: StateMatch, prefix: Prefix) -> HoldPlan:
        """The snapshot to resume from, if it is held."""
        snapshot = match.after(prefix.state_tokens)
        return HoldPlan(self.holdings.account_of(namespace), [] if snapshot is None else [snapshot])

    def is_continued(self, snapshot: Snapshot) -> bool:  # noqa: ARG002
        """Each is found by itself."""
        return False

    def removed(self, snapshot: Snapshot, reason: Reason) -> None:  # noqa: ARG002
        self.snapshots.remove(snapshot)
        snapshot.page = NO_PAGE

    def check_integrity(self, tables: Sequence[StateTable]) -> None:
        """Raise IntegrityError unless counts, snapshots and the given (all live) tables agree."""
        users = [0] * self.holdings.counts.total
        for table in tables:
            for slot in (*table.pages, *(slot for _, slot in table.cuts)):
                users[slot] += 1
        self.holdings.check_integrity(self.snapshots, users)

    def _must_copy(self, table: PageTable) -> bool:
        return self.holdings.allocator.references(table.pages[0]) > 1

    def _reserve_cuts(self, table: StateTable, num_tokens: int) -> list[int]:
        """Slots for the copies due in the next `num_tokens` tokens, as far as there are any; the last ones first."""
        assert not table.cuts, "reserved twice"
        start = table.num_tokens
        points = self._rule.points(start, start + num_tokens, table.resume_points)
        available = self.holdings.available_to(table.account)
        for point in reversed(points[-available:] if available else []):
            [slot] = self.holdings.allocate(1, table.account)
            table.cuts.insert(0, (point, slot))
        return [slot for _, slot in table.cuts]

    def _keep(self, namespace: Namespace, key: bytes, slot: int, num_hits: int = 0) -> None:
        """Make the state in an open slot a snapshot, unless there is one of these tokens."""
        existing = self.snapshots.find(namespace, key)
        if existing is not None:
            self.holdings.allocator.release(slot)
            existing.is_spent = False
            self.holdings.touch(existing)
            return
        self.holdings.allocator.seal(slot)
        snapshot = self.snapshots.add(namespace, key, slot)
        snapshot.num_hits = num_hits
        snapshot.first_used = self.holdings.clock
        self.holdings.leave(snapshot)
        self.holdings.can_be_found(snapshot)

    def _keep_end(self, table: StateTable, tokens: Sequence[int]) -> None:
        """Keep the last state of a sequence, whose slot leaves the table.

        What it came from has had its use, unless its prompt was asked before. The state before the end of the prompt
        gives way to the last one, or the last one to it, as prompts of late go on from answers or are asked again.
        """
        key = token_key(tokens[: table.num_tokens])
        self._keep(table.namespace, key, table.pages[0])
        table.pages.pop()
        *way, end = self.snapshots.match(table.namespace, key)
        if table.resume_points.is_asked_again or self._answers_return < 0:
            self._spend([end])
        else:
            prompt_tokens = table.resume_points.prompt_tokens - 1
            self._spend([each for each in way if each.num_tokens == prompt_tokens and not each.num_hits])
        if not table.resume_points.is_asked_again:
            self._spend([each for each in way if each is table.source])

    def _spend(self, snapshots: Sequence[Snapshot]) -> None:
        """Let those go first that others have gone on from: unless a second sequence comes, they have had their use."""
        for snapshot in snapshots:
            if snapshot.num_hits <= 1 and self.holdings.is_evictable(snapshot):
                snapshot.is_spent = True
                self.holdings.make_evictable(snapshot)
