"""The keys and values of encoder outputs, shared by all sequences of the same encoder input.

An entry is all pages of one input: written in the step in which its first sequence starts, then sealed, and evicted as
a whole. Answers the same questions as `PageGroup`, but knows no prefixes: an output is held or it is not. Knows
namespaces and counts; moving bytes is left to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.groups.base import NO_ACTIONS, PageActions
from pagoda.cache.groups.fill import CrossReach, Fill, FillTarget
from pagoda.cache.groups.table import PageTable, ResumePoints
from pagoda.cache.holdings.accounts import Account
from pagoda.cache.holdings.holdings import Holdings
from pagoda.cache.holdings.leased_pages import HoldPlan, Prefix
from pagoda.cache.prefix.held import NO_PAGE, Held, Reason
from pagoda.cache.prefix.namespace import Namespace
from pagoda.config import NO_TENANTS, TenantShare
from pagoda.errors import IntegrityError

TOKENS_OF_ENCODER = "pages for the tokens of an encoder"


class Entry(Held):
    """The pages of one encoder input. `is_written` from the end of the step that computes it.

    While it `is_arriving` it is brought from a tier.
    """

    __slots__ = ("_pages", "is_arriving", "is_written", "namespace")

    def __init__(self, namespace: Namespace, pages: Sequence[int]) -> None:
        super().__init__(namespace.encoder_digest, pages[0])
        self.namespace = namespace
        self._pages = tuple(pages)
        self.is_written = False
        self.is_arriving = False

    @property
    def pages(self) -> tuple[int, ...]:
        return self._pages

    @property
    def recompute_tokens(self) -> int:
        return self.namespace.num_encoder_tokens

    @property
    def fingerprint(self) -> int:
        return hash(self.namespace)


class CrossMatch(NamedTuple):
    """Whether the output for a namespace is held."""

    namespace: Namespace
    entry: Entry | None

    @property
    def num_tokens(self) -> int:
        """An output is no prefix."""
        return 0

    @property
    def num_encoder_tokens(self) -> int:
        return self.namespace.num_encoder_tokens if self.entry else 0

    @property
    def is_arriving(self) -> bool:
        """Whether it has to be waited for."""
        return self.entry is not None and self.entry.is_arriving


class CrossTable(PageTable):
    """The pages of one sequence's encoder input. They hold as many tokens from first to last."""

    __slots__ = ("entry",)

    def __init__(self, account: Account, entry: Entry) -> None:
        super().__init__(account, None)
        self.entry = entry
        self.pages.extend(entry.pages)
        self.num_tokens = entry.namespace.num_encoder_tokens

    def num_slots_after(self, num_new_tokens: int) -> int:  # noqa: ARG002
        return self.num_slots


class CrossGroup:
    """Entries over one pool. With `share` off every sequence has an entry of its own, which goes when it ends."""

    prefixes = None
    snapshots = None

    def __init__(
        self,
        num_pages: int,
        page_tokens: int,
        policy: EvictionPolicy,
        share: bool = True,
        tenants: Mapping[str, TenantShare] = NO_TENANTS,
    ) -> None:
        self.page_tokens = page_tokens
        self.holdings = Holdings(num_pages, policy, self, share, tenants, TOKENS_OF_ENCODER)
        self._share = share
        self._entries: dict[Namespace, Entry] = {}

    def match(self, namespace: Namespace, key: bytes) -> CrossMatch:  # noqa: ARG002
        """The output for the encoder input of `namespace`, whatever the decoder's tokens."""
        return CrossMatch(namespace, self._entries.get(namespace))

    def resumable(self, match: CrossMatch, num_tokens: int) -> int:  # noqa: ARG002
        """Any: what is not held is computed beside the first new token."""
        return num_tokens

    def attach_cost(self, match: CrossMatch, num_tokens: int) -> int:  # noqa: ARG002
        """All pages of the output, unless another sequence or a lease holds them already."""
        is_held = match.entry is not None and self.holdings.allocator.is_pinned(match.entry.page)
        return 0 if is_held else self._num_pages(match.namespace)

    def growth_cost(self, num_tokens: int, num_new_tokens: int, step_tokens: int) -> int:  # noqa: ARG002
        """What was read does not grow."""
        return 0

    def attach(
        self,
        namespace: Namespace,
        match: CrossMatch,
        num_tokens: int,
        points: ResumePoints,  # noqa: ARG002
    ) -> tuple[CrossTable, PageActions]:
        """A table of the output's pages, which are fresh if it is not held.

        Raises OutOfPagesError, changing nothing, if they cannot be had.
        """
        holdings = self.holdings
        needed, account = self.attach_cost(match, num_tokens), holdings.account_of(namespace)
        holdings.check_available(needed, account)
        holdings.tick()
        if match.entry is not None:
            holdings.hit((match.entry,))
            return self._take(match.entry), NO_ACTIONS
        entry = Entry(namespace, holdings.allocate(needed, account))
        if self._share:
            self._entries[namespace] = entry
        return CrossTable(account, entry), PageActions(entry.pages, ())

    def pages_of(self, match: CrossMatch, start: int) -> tuple[int, ...]:  # noqa: ARG002
        """The pages of the output."""
        assert match.entry is not None
        return match.entry.pages

    def reach(self, match: CrossMatch, num_tokens: int) -> CrossReach:  # noqa: ARG002
        return CrossReach(match.entry is not None)

    def attach_to_fill(
        self, namespace: Namespace, match: CrossMatch, target: FillTarget, points: ResumePoints
    ) -> tuple[CrossTable, PageActions, list[Fill]]:
        """A table of pages that are to be filled, if `target` has them; if not they are written as ever."""
        table, actions = self.attach(namespace, match, target.num_tokens, points)
        if match.entry is not None or 0 not in target.brought:
            return table, actions, []
        table.entry.is_arriving = True
        return table, actions, [Fill(0, table.entry.pages)]

    def filled(self, table: CrossTable, tokens: Sequence[int], num_tokens: int) -> None:
        """The output is there, if it was to be brought."""
        if table.entry.is_arriving:
            table.entry.is_arriving = False
            self.commit(table, tokens, num_tokens)

    def reserve_cost(self, table: CrossTable, num_tokens: int) -> int:  # noqa: ARG002
        return 0

    def reserve(self, table: CrossTable, num_tokens: int) -> PageActions:  # noqa: ARG002
        return NO_ACTIONS

    def commit(self, table: CrossTable, tokens: Sequence[int], num_tokens: int) -> None:  # noqa: ARG002
        """The output is written, if it was not before."""
        entry = table.entry
        if not entry.is_written:
            entry.is_written = True
            for page in entry.pages:
                self.holdings.allocator.seal(page)
            entry.first_used = self.holdings.clock
            if self._is_found(entry):
                self.holdings.can_be_found(entry)

    def fork(self, table: CrossTable) -> CrossTable:
        return self._take(table.entry)

    def detach(self, table: CrossTable) -> None:
        """What an encoder made depends on its input alone."""

    def release(self, table: CrossTable, tokens: Sequence[int] = (), keep: bool = True) -> None:  # noqa: ARG002
        """Drop a user of the output, which stays for others if it was ever written.

        A sequence whose own pages are in doubt (`keep` False) says nothing against what it has read.
        """
        entry = table.entry
        if not entry.is_written and self._is_found(entry):
            del self._entries[entry.namespace]
        self.holdings.tick()
        while table.pages:
            self.holdings.allocator.release(table.pages.pop())
            if not table.pages and not self._num_users(entry):
                self._keep(entry)

    def plan_lease(self, namespace: Namespace, match: CrossMatch, prefix: Prefix) -> HoldPlan:  # noqa: ARG002
        """The output, once it is written."""
        entry = match.entry
        kept = [entry] if entry is not None and entry.is_written else []
        return HoldPlan(self.holdings.account_of(namespace), kept)

    def is_continued(self, entry: Entry) -> bool:  # noqa: ARG002
        """Each is found by itself."""
        return False

    def removed(self, entry: Entry, reason: Reason) -> None:  # noqa: ARG002
        del self._entries[entry.namespace]
        entry.page = NO_PAGE

    def check_integrity(self, tables: Sequence[CrossTable]) -> None:
        """Raise IntegrityError unless counts, entries and the given (all live) tables agree."""
        users = [0] * self.holdings.counts.total
        for table in tables:
            for page in table.pages:
                users[page] += 1
        entries = {table.entry for table in tables} | {*self._entries.values()}
        if any(users[page] != self._num_users(entry) for entry in entries for page in entry.pages):
            raise IntegrityError("The pages of an encoder output have different numbers of users.")
        self.holdings.check_integrity(entries, users)

    def _num_pages(self, namespace: Namespace) -> int:
        return -(-namespace.num_encoder_tokens // self.page_tokens)

    def _num_users(self, entry: Entry) -> int:
        """Of all its pages alike."""
        return self.holdings.allocator.references(entry.pages[0])

    def _is_found(self, entry: Entry) -> bool:
        """Whether it is the one for its input."""
        return self._entries.get(entry.namespace) is entry

    def _take(self, entry: Entry) -> CrossTable:
        self.holdings.use((entry,))
        return CrossTable(self.holdings.account_of(entry.namespace), entry)

    def _keep(self, entry: Entry) -> None:
        """Keep an output without users for later hits, if it may be found."""
        if self._is_found(entry):
            self.holdings.touch(entry)
            return
        for page in entry.pages if entry.is_written else ():  # open pages went with their user
            self.holdings.allocator.free(page)
        entry.page = NO_PAGE
