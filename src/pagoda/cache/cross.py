"""The keys and values of encoder outputs, shared by all sequences of the same encoder input.

An entry is all pages of one input: written in the step in which its first sequence starts, then sealed, and evicted as
a whole. Answers the same questions as `PageGroup`, but knows no prefixes: an output is held or it is not. Knows
namespaces and counts; moving bytes is left to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pagoda.cache.accounts import Account, Accounts
from pagoda.cache.coverage import Coverages, CoverPlan, Prefix
from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.group import NO_TENANTS, PageActions
from pagoda.cache.namespace import Namespace
from pagoda.cache.outline import Outline
from pagoda.cache.pages import Milestones, PageAllocator, PageCounts, PageTable
from pagoda.cache.radix import NO_PAGE, Node, Watcher
from pagoda.config import TenantShare
from pagoda.errors import IntegrityError, OutOfPagesError


class Entry(Node):
    """The pages of one encoder input. `is_written` from the end of the step that computes it."""

    __slots__ = ("is_written", "namespace", "pages")
    pages: tuple[int, ...]

    def __init__(self, namespace: Namespace, pages: Sequence[int]) -> None:
        super().__init__(None, namespace.encoder_digest, pages[0])
        self.namespace = namespace
        self.pages = tuple(pages)
        self.is_written = False


class CrossMatch(NamedTuple):
    """Whether the output for a namespace is held."""

    namespace: Namespace
    entry: Entry | None


class CrossTable(PageTable):
    """The pages of one sequence's encoder input. They hold as many tokens from first to last."""

    __slots__ = ("entry",)
    grows = False

    def __init__(self, account: Account, entry: Entry) -> None:
        super().__init__(account, None)
        self.entry = entry
        self.pages.extend(entry.pages)
        self.num_tokens = entry.namespace.num_encoder_tokens


class CrossGroup:
    """Entries over one pool. With `share` off every sequence has an entry of its own, which goes when it ends."""

    keeps_all = False
    resumes_anywhere = True
    holds_prefixes = False

    def __init__(
        self,
        num_pages: int,
        page_tokens: int,
        policy: EvictionPolicy,
        share: bool = True,
        tenants: Mapping[str, TenantShare] = NO_TENANTS,
    ) -> None:
        self.page_tokens = page_tokens
        self.num_evictions = 0
        self.num_doubted = 0
        self._share = share
        self.accounts = Accounts(num_pages, tenants, policy, self._is_evictable)
        self._allocator = PageAllocator(num_pages, self.accounts)
        self.leases = Coverages(self._allocator, self._offer, share)
        self._entries: dict[Namespace, Entry] = {}
        self._clock = 0

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

    def match(self, namespace: Namespace, key: bytes) -> CrossMatch:  # noqa: ARG002
        """The output for the encoder input of `namespace`, whatever the decoder's tokens."""
        return CrossMatch(namespace, self._entries.get(namespace))

    def matched_tokens(self, match: CrossMatch) -> int:
        """Of the encoder."""
        return match.namespace.num_encoder_tokens if match.entry else 0

    def resumable(self, match: CrossMatch, num_tokens: int) -> int:  # noqa: ARG002
        """Any: what is not held is computed beside the first new token."""
        return num_tokens

    def attach_cost(self, match: CrossMatch, num_tokens: int) -> int:  # noqa: ARG002
        """All pages of the output, unless another sequence or a lease holds them already."""
        is_held = match.entry is not None and self._allocator.is_pinned(match.entry.page)
        return 0 if is_held else self._num_pages(match.namespace)

    def growth_cost(self, num_tokens: int, num_new_tokens: int, step_tokens: int) -> int:  # noqa: ARG002
        """What was read does not grow."""
        return 0

    def spare_pages(self, num_sequences: int) -> int:  # noqa: ARG002
        return 0

    def attach(
        self,
        namespace: Namespace,
        match: CrossMatch,
        num_tokens: int,
        milestones: Milestones,  # noqa: ARG002
    ) -> tuple[CrossTable, PageActions]:
        """A table of the output's pages, which are fresh if it is not held.

        Raises OutOfPagesError, changing nothing, if they cannot be had.
        """
        needed, account = self.attach_cost(match, num_tokens), self.accounts.of(namespace)
        if needed > self.available_to(account):
            raise OutOfPagesError(
                f"{needed} pages for the tokens of an encoder are needed and {self.available_to(account)} can be had; "
                "wait for a sequence to end or raise kv_cache_memory_bytes."
            )
        self._clock += 1
        if match.entry is not None:
            return self._take(match.entry), PageActions([], [])
        entry = Entry(namespace, [self._allocate(account) for _ in range(needed)])
        if self._share:
            self._entries[namespace] = entry
        return CrossTable(account, entry), PageActions(list(entry.pages), [])

    def reserve_cost(self, table: CrossTable, num_tokens: int) -> int:  # noqa: ARG002
        return 0

    def reserve(self, table: CrossTable, num_tokens: int) -> PageActions:  # noqa: ARG002
        return PageActions([], [])

    def commit(self, table: CrossTable, tokens: Sequence[int], num_tokens: int) -> None:  # noqa: ARG002
        """The output is written, if it was not before."""
        entry = table.entry
        if not entry.is_written:
            entry.is_written = True
            for page in entry.pages:
                self._allocator.seal(page)

    def fork(self, table: CrossTable) -> CrossTable:
        return self._take(table.entry)

    def release(self, table: CrossTable, tokens: Sequence[int] = (), keep: bool = True) -> None:  # noqa: ARG002
        """Drop a user of the output, which stays for others if it was ever written.

        A sequence whose own pages are in doubt (`keep` False) says nothing against what it has read.
        """
        entry = table.entry
        if not entry.is_written and self._entries.get(entry.namespace) is entry:
            del self._entries[entry.namespace]
        self._clock += 1
        while table.pages:
            self._allocator.release(table.pages.pop())
            if not table.pages and not self._num_users(entry):
                self._leave(entry)

    def next_page(self, namespace: Namespace, match: CrossMatch, tokens: Sequence[int]) -> object | None:  # noqa: ARG002
        """Nobody waits for an output that another computes: sequences that start in one step share it at once."""
        return None

    def page_being_written(self, namespace: Namespace, table: CrossTable, tokens: Sequence[int]) -> object | None:  # noqa: ARG002
        return None

    def lease_plan(self, namespace: Namespace, match: CrossMatch, prefix: Prefix) -> CoverPlan:  # noqa: ARG002
        """The output, once it is written."""
        entry = match.entry
        return CoverPlan(self.accounts.of(namespace), [entry] if entry is not None and entry.is_written else [])

    def reset(self) -> int:
        """Evict every output that no sequence uses, none of which may be leased; returns how many pages that were."""
        idle = [entry for entry in self._entries.values() if not self._num_users(entry)]
        for entry in idle:
            self._evict(entry)
        return sum(len(entry.pages) for entry in idle)

    def check_integrity(self, tables: Sequence[CrossTable]) -> None:
        """Raise IntegrityError unless counts, entries and the given (all live) tables agree."""
        users = [0] * self._allocator.counts.total
        for table in tables:
            for page in table.pages:
                users[page] += 1
        self._allocator.check_integrity(users)
        entries = {table.entry for table in tables} | {*self._entries.values()}
        held = [page for entry in entries for page in entry.pages]
        if len(set(held)) != len(held):
            raise IntegrityError("Two encoder outputs name the same page.")
        if any(users[page] != self._num_users(entry) for entry in entries for page in entry.pages):
            raise IntegrityError("The pages of an encoder output have different numbers of users.")
        if self._allocator.counts.idle != sum(len(entry.pages) for entry in entries if not self._num_users(entry)):
            raise IntegrityError("The pages that nobody uses are not those of encoder outputs.")
        self.leases.check_integrity([*entries], self.accounts.all)

    def _num_pages(self, namespace: Namespace) -> int:
        return -(-namespace.num_encoder_tokens // self.page_tokens)

    def _num_users(self, entry: Entry) -> int:
        """Of all its pages alike."""
        return self._allocator.references(entry.pages[0])

    def _take(self, entry: Entry) -> CrossTable:
        for page in entry.pages:
            self._allocator.retain(page)
        return CrossTable(self.accounts.of(entry.namespace), entry)

    def _leave(self, entry: Entry) -> None:
        """Keep an output without users for later hits, if it may be found."""
        if self._entries.get(entry.namespace) is not entry:
            self._free(entry)
            return
        entry.last_used = self._clock
        self._offer(entry)

    def _offer(self, entry: Node) -> None:
        if self._is_evictable(entry):
            self.accounts.owner(entry.page).idle.offer(entry, len(self._entries))

    def _is_evictable(self, node: Node) -> bool:
        return node.page != NO_PAGE and not self._allocator.is_pinned(node.page)

    def _allocate(self, account: Account) -> int:
        """An open page, evicting an output when short."""
        if not self._allocator.num_free:
            node = self.accounts.next_idle(account)
            assert isinstance(node, Entry), "an idle output was not offered for eviction"
            self._evict(node)
            self.num_evictions += len(node.pages)
        return self._allocator.allocate(account)

    def _evict(self, entry: Entry) -> None:
        del self._entries[entry.namespace]
        self._free(entry)

    def _free(self, entry: Entry) -> None:
        for page in entry.pages if entry.is_written else ():  # open pages went with their user
            self._allocator.free(page)
        entry.page = NO_PAGE
