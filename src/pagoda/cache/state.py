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

from pagoda.cache.accounts import Account, Accounts
from pagoda.cache.coverage import Coverages, CoverPlan, Prefix
from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.group import NO_TENANTS, PageActions
from pagoda.cache.namespace import Namespace
from pagoda.cache.outline import Outline
from pagoda.cache.pages import Milestones, PageAllocator, PageCounts, PageTable
from pagoda.cache.radix import NO_PAGE, Node, Watcher, token_key
from pagoda.cache.snapshots import Snapshot, Snapshots
from pagoda.config import TenantShare
from pagoda.errors import IntegrityError, OutOfPagesError

# In the order of eviction every use but the first counts like so many ticks for each snapshot held, up to so many uses.
USE_TICKS = 4
MOST_USES = 4
# How fast it is forgotten how prompts began.
BALANCE_DECAY = 0.9


@dataclass(frozen=True)
class SnapshotRule:
    """Where states are copied: every `interval_tokens` (None: nowhere), where leases end, and where prompts part.

    The last at the last multiple of `branch_multiple` before, since tokens after it may agree by chance.
    """

    interval_tokens: int | None
    branch_multiple: int

    def points(self, start: int, stop: int, milestones: Milestones) -> list[int]:
        """The numbers of tokens above `start`, up to `stop`, after which the state should be copied, in order."""
        ends = (self.branch(milestones), milestones.prompt_tokens - 1)
        # Nobody resumes after the last token of the prompt, which is computed anew, but just before it.
        leased = (min(point, milestones.prompt_tokens - 1) for point in milestones.breakpoints)
        points = {point for point in (*ends, *leased) if start < point <= stop}
        if self.interval_tokens is not None:
            first = (start // self.interval_tokens + 1) * self.interval_tokens
            points |= set(range(first, stop + 1, self.interval_tokens))
        return sorted(points)

    def branch(self, milestones: Milestones) -> int:
        """Where prompts part, for sure; nowhere if the whole prompt is known."""
        if milestones.is_asked_again:
            return 0
        return milestones.branch_tokens - milestones.branch_tokens % self.branch_multiple


class StateTable(PageTable):
    """The slot of one sequence, as its only page, and the copies to be made in the next step: (tokens, slot).

    `source` is the snapshot it began with.
    """

    __slots__ = ("cuts", "namespace", "source")

    def __init__(self, account: Account, namespace: Namespace, milestones: Milestones) -> None:
        super().__init__(account, None, milestones=milestones)
        self.namespace = namespace
        self.cuts: list[tuple[int, int]] = []
        self.source: Snapshot | None = None


class StateGroup:
    """Slots of states over one pool. With `share` off no snapshot is ever kept."""

    page_tokens = 1
    keeps_all = False
    resumes_anywhere = False
    holds_prefixes = True

    def __init__(
        self,
        num_slots: int,
        policy: EvictionPolicy,
        rule: SnapshotRule,
        share: bool = True,
        tenants: Mapping[str, TenantShare] = NO_TENANTS,
    ) -> None:
        self.num_evictions = 0
        self.num_doubted = 0
        self._rule = rule
        self._share = share
        self.accounts = Accounts(num_slots, tenants, policy, self._is_evictable)
        self._allocator = PageAllocator(num_slots, self.accounts)
        self.leases = Coverages(self._allocator, self._offer, share)
        self._snapshots = Snapshots()
        self._num_snapshots = 0
        self._clock = 0
        self._answers_return = 0.0  # positive if prompts go on from answers more often than they are asked again

    @property
    def counts(self) -> PageCounts:
        return self._allocator.counts

    def watch(self, watcher: Watcher) -> None:
        """There are no pages of tokens to tell of."""

    def page_states(self, stride: int) -> bytes:
        return self._allocator.page_states(stride)

    def outline(self, most: int, most_tokens: int, tenant: str | None) -> list[Outline]:  # noqa: ARG002
        """There is no tree."""
        return []

    def available_to(self, account: Account) -> int:
        return self._allocator.available_to(account)

    def match(self, namespace: Namespace, key: bytes) -> list[Snapshot]:
        """The snapshots on the way through the tokens in `key`."""
        return self._snapshots.match(namespace, key)

    def matched_tokens(self, match: list[Snapshot]) -> int:
        return match[-1].num_tokens if match else 0

    def resumable(self, match: list[Snapshot], num_tokens: int) -> int:
        """The deepest snapshot within the first `num_tokens` tokens."""
        return max((each.num_tokens for each in match if each.num_tokens <= num_tokens), default=0)

    def attach_cost(self, match: list[Snapshot], num_tokens: int) -> int:
        """A slot, and the snapshot, which must not be evicted before it is copied."""
        snapshot = next((each for each in match if each.num_tokens == num_tokens), None)
        return 1 + (snapshot is not None and not self._allocator.is_pinned(snapshot.page))

    def growth_cost(self, num_tokens: int, num_new_tokens: int, step_tokens: int) -> int:  # noqa: ARG002
        """A state does not grow."""
        return 0

    def spare_pages(self, num_sequences: int) -> int:  # noqa: ARG002
        return 0

    def attach(
        self, namespace: Namespace, match: list[Snapshot], num_tokens: int, milestones: Milestones
    ) -> tuple[StateTable, PageActions]:
        """A slot that starts as a copy of the snapshot after `num_tokens`, if there are any.

        Raises OutOfPagesError, changing nothing, if there is no slot.
        """
        account = self.accounts.of(namespace)
        self._check_available(self.attach_cost(match, num_tokens), account)
        table = StateTable(account, namespace, milestones)
        self._clock += 1
        if milestones.branch_tokens:
            self._answers_return = BALANCE_DECAY * self._answers_return + (-1 if milestones.is_asked_again else 1)
        snapshot = next((each for each in match if each.num_tokens == num_tokens), None)
        if snapshot is None:
            slot = self._allocate(account)
            table.pages.append(slot)
            return table, PageActions([slot], [])
        snapshot.num_uses += 1
        self._allocator.retain(snapshot.page)  # not to be evicted to make room for its own copy
        try:
            slot = self._allocate(account)
        finally:
            self._leave(snapshot)
        self._demote([each for each in match if each.num_tokens < num_tokens])
        table.source = snapshot
        table.pages.append(slot)
        table.num_tokens = num_tokens
        return table, PageActions([slot], [(snapshot.page, slot)])

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
            self._check_available(1, table.account)
            shared, slot = table.pages[0], self._allocate(table.account)
            self._allocator.release(shared)
            table.pages[0] = slot
            fresh, copies = [slot], [(shared, slot)]
        if self._share:
            fresh += self._reserve_cuts(table, num_tokens)
        return PageActions(fresh, copies)

    def commit(self, table: StateTable, tokens: Sequence[int], num_tokens: int) -> None:
        """The state is that after the first `num_tokens` of `tokens` now, and the copies of this step are made."""
        self._clock += 1
        while table.cuts:
            point, slot = table.cuts[0]
            # Where prompts part another sequence has gone on before.
            num_uses = int(point == self._rule.branch(table.milestones))
            self._keep(table.namespace, token_key(tokens[:point]), slot, num_uses)
            del table.cuts[0]
        table.num_tokens = num_tokens

    def fork(self, table: StateTable) -> StateTable:
        """A second table of the same state, copied by whoever goes on first."""
        twin = StateTable(table.account, table.namespace, table.milestones)
        twin.num_tokens = table.num_tokens
        twin.pages = table.pages[:]
        self._allocator.retain(table.pages[0])
        return twin

    def release(self, table: StateTable, tokens: Sequence[int] = (), keep: bool = True) -> None:
        """Give up the slot of a sequence, whose tokens are `tokens`.

        Its state stays as a snapshot; without `keep` it goes now, and so do all snapshots on the way to it, whose
        leases end.
        """
        self._clock += 1
        while table.cuts:
            self._allocator.release(table.cuts.pop()[1])
        has_end = keep and self._share and table.num_tokens and tokens
        if has_end and table.pages and self._allocator.references(table.pages[0]) == 1:
            self._keep_end(table, tokens)
        while table.pages:
            self._allocator.release(table.pages.pop())
        if not keep:
            for snapshot in self.match(table.namespace, token_key(tokens[: table.num_tokens])):
                self.leases.break_over(snapshot)
                self._evict(snapshot)
                self.num_doubted += 1
        table.num_tokens = 0

    def next_page(self, namespace: Namespace, match: list[Snapshot], tokens: Sequence[int]) -> object | None:  # noqa: ARG002
        """Nobody waits for a state that another computes: see `PageGroup.next_page`."""
        return None

    def page_being_written(self, namespace: Namespace, table: PageTable, tokens: Sequence[int]) -> object | None:  # noqa: ARG002
        return None

    def lease_plan(self, namespace: Namespace, match: list[Snapshot], prefix: Prefix) -> CoverPlan:
        """The snapshot to resume from, if it is held."""
        nodes = [each for each in match if each.num_tokens == prefix.state_tokens]
        return CoverPlan(self.accounts.of(namespace), nodes)

    def reset(self) -> int:
        """Evict every snapshot, none of which may be leased; returns how many."""
        snapshots = list(self._snapshots)
        for snapshot in snapshots:
            self._evict(snapshot)
        return len(snapshots)

    def check_integrity(self, tables: Sequence[StateTable]) -> None:
        """Raise IntegrityError unless counts, snapshots and the given (all live) tables agree."""
        users = [0] * self._allocator.counts.total
        for table in tables:
            for slot in (*table.pages, *(slot for _, slot in table.cuts)):
                users[slot] += 1
        self._allocator.check_integrity(users)
        held = [snapshot.page for snapshot in self._snapshots]
        if len(set(held)) != len(held) or len(held) != self._num_snapshots:
            raise IntegrityError("Two snapshots name the same slot, or their number is wrong.")
        if self._allocator.counts.idle != len(held) or any(users[slot] for slot in held):
            raise IntegrityError("The slots that nobody uses are not those of the snapshots.")
        self.leases.check_integrity([*self._snapshots], self.accounts.all)

    def _is_evictable(self, node: Node) -> bool:
        return node.page != NO_PAGE and not self._allocator.is_pinned(node.page)

    def _must_copy(self, table: PageTable) -> bool:
        return self._allocator.references(table.pages[0]) > 1

    def _reserve_cuts(self, table: StateTable, num_tokens: int) -> list[int]:
        """Slots for the copies due in the next `num_tokens` tokens, as far as there are any; the last ones first."""
        assert not table.cuts, "reserved twice"
        start = table.num_tokens
        points = self._rule.points(start, start + num_tokens, table.milestones)
        available = self.available_to(table.account)
        for point in reversed(points[-available:] if available else []):
            table.cuts.insert(0, (point, self._allocate(table.account)))
        return [slot for _, slot in table.cuts]

    def _keep(self, namespace: Namespace, key: bytes, slot: int, num_uses: int = 0) -> None:
        """Make the state in an open slot a snapshot, unless there is one of these tokens."""
        existing = self._snapshots.find(namespace, key)
        if existing is not None:
            self._allocator.release(slot)
            self._touch(existing)
            return
        self._allocator.seal(slot)
        snapshot = self._snapshots.add(namespace, key, slot)
        self._num_snapshots += 1
        snapshot.num_uses = num_uses
        self._leave(snapshot)

    def _keep_end(self, table: StateTable, tokens: Sequence[int]) -> None:
        """Keep the last state of a sequence, whose slot leaves the table.

        What it came from has had its use, unless its prompt was asked before. The state before the end of the prompt
        gives way to the last one, or the last one to it, as prompts of late go on from answers or are asked again.
        """
        key = token_key(tokens[: table.num_tokens])
        self._keep(table.namespace, key, table.pages[0])
        table.pages.pop()
        *way, end = self.match(table.namespace, key)
        if table.milestones.is_asked_again or self._answers_return < 0:
            self._demote([end])
        else:
            prompt_tokens = table.milestones.prompt_tokens - 1
            self._demote([each for each in way if each.num_tokens == prompt_tokens and not each.num_uses])
        if not table.milestones.is_asked_again:
            self._demote([each for each in way if each is table.source])

    def _leave(self, snapshot: Snapshot) -> None:
        """Drop the only user of a snapshot."""
        self._allocator.release(snapshot.page)
        self._touch(snapshot)

    def _touch(self, snapshot: Snapshot) -> None:
        # What several have resumed from outlasts what nobody has, of which every sequence leaves some.
        several = max(snapshot.num_uses - 1, 0)
        snapshot.last_used = self._clock + min(several, MOST_USES) * USE_TICKS * self._num_snapshots
        self._offer(snapshot)

    def _offer(self, snapshot: Node) -> None:
        if self._is_evictable(snapshot):
            self.accounts.owner(snapshot.page).idle.offer(snapshot, self._num_snapshots)

    def _demote(self, snapshots: Sequence[Snapshot]) -> None:
        """Let those go first that others have gone on from: unless a second sequence comes, they have had their use."""
        for snapshot in snapshots:
            if snapshot.num_uses <= 1 and self._is_evictable(snapshot):
                snapshot.last_used -= self._clock
                self._offer(snapshot)

    def _allocate(self, account: Account) -> int:
        """An open slot, evicting a snapshot when short."""
        if not self._allocator.num_free:
            node = self.accounts.next_idle(account)
            assert node is not None, "an idle snapshot was not offered for eviction"
            self._evict(node)
            self.num_evictions += 1
        return self._allocator.allocate(account)

    def _evict(self, snapshot: Node) -> None:
        assert isinstance(snapshot, Snapshot)
        self._snapshots.remove(snapshot)
        self._allocator.free(snapshot.page)
        snapshot.page = NO_PAGE
        self._num_snapshots -= 1

    def _check_available(self, num_slots: int, account: Account) -> None:
        available = self.available_to(account)
        if num_slots > available:
            raise OutOfPagesError(
                f"{num_slots} slots for recurrent states are needed and {available} can be had; wait for a sequence to "
                "end or raise kv_cache_memory_bytes."
            )
