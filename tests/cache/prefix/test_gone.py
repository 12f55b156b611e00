"""What is remembered of pages that went: which, why and for whom, within a bound."""

from __future__ import annotations

import pytest

from pagoda.cache.cache import Cache, NoBytes
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.prefix import gone as gone_module
from pagoda.cache.prefix.gone import ENTRY_NBYTES, Gone, GoneRun
from pagoda.cache.prefix.held import Reason
from pagoda.cache.prefix.namespace import Namespace

PAGE_TOKENS = 4
ONE, OTHER = Namespace(tenant="one"), Namespace(tenant="other")


class Watched:
    """A cache of few pages, and what went of it."""

    def __init__(self, num_pages: int = 8, most_nbytes: int = 1 << 16) -> None:
        self.group = PageGroup(num_pages, PAGE_TOKENS, LRU(), KeepAll())
        self.cache = Cache([self.group], [NoBytes()])
        self.gone = Gone(most_nbytes)
        self.group.prefixes.watch_removals(self.gone.removed)

    def store(self, tokens: list[int], namespace: Namespace = ONE, keep: bool = True) -> None:
        sequence = self.cache.attach(self.cache.match(namespace, tokens, len(tokens)), len(tokens))
        assert self.cache.reserve(sequence, len(tokens) - sequence.num_tokens)
        self.cache.commit(sequence, tokens, len(tokens))
        self.cache.release(sequence, tokens, keep)

    def find(self, tokens: list[int], namespace: Namespace = ONE) -> GoneRun | None:
        hit = self.cache.match(namespace, tokens, len(tokens))
        root = self.group.prefixes.tree.root(namespace)
        return self.gone.find(root, hit.matches[0], hit.key, PAGE_TOKENS)


def tokens(start: int, num_tokens: int) -> list[int]:
    return list(range(start, start + num_tokens))


def test_nothing_is_known_of_what_never_was_and_of_what_is_held():
    watched = Watched()
    watched.store(tokens(0, 10))
    assert watched.find(tokens(0, 10)) is None
    assert watched.find(tokens(0, 14)) is None
    assert watched.find(tokens(100, 8)) is None
    assert watched.gone.nbytes == 0


@pytest.mark.parametrize("num_tokens", [4, 10, 12])
def test_what_gave_way_is_known_to_the_token_with_whom_it_was_for(num_tokens):
    watched = Watched()
    watched.store(tokens(0, num_tokens))
    watched.gone.serve("the flood")
    watched.store(tokens(100, 32))
    run = watched.find(tokens(0, 30))
    assert run is not None
    assert (run.departure.reason, run.departure.whom, run.num_tokens) == (Reason.ROOM, "the flood", num_tokens)
    assert watched.find(tokens(0, num_tokens), OTHER) is None


def test_what_is_left_of_a_prefix_is_not_gone():
    watched = Watched()
    watched.store(tokens(0, 20))
    watched.store(tokens(100, 16))
    run = watched.find(tokens(0, 20))
    assert run is not None
    held = watched.cache.match(ONE, tokens(0, 20), 20).num_tokens
    assert 0 < held < 20
    assert held + run.num_tokens == 20


@pytest.mark.parametrize(
    ("forget", "reason"),
    [
        (lambda watched: watched.cache.reset(), Reason.RESET),
        (lambda watched: watched.store(tokens(0, 8), keep=False), Reason.DOUBT),
    ],
)
def test_reasons_are_told_apart(forget, reason):
    watched = Watched()
    watched.store(tokens(0, 8))
    forget(watched)
    run = watched.find(tokens(0, 8))
    assert run is not None
    assert (run.departure.reason, run.num_tokens) == (reason, 8)


def test_a_tail_that_a_longer_page_replaced_is_not_gone():
    watched = Watched()
    watched.store(tokens(0, 6))
    watched.store(tokens(0, 8))
    assert watched.gone.nbytes == 0


def test_a_lease_that_ran_out_is_told_of():
    watched = Watched()
    watched.store(tokens(0, 8))
    watched.gone.lapsed(list(watched.group.prefixes.tree.nodes()))
    watched.store(tokens(100, 32))
    run = watched.find(tokens(0, 8))
    assert run is not None
    assert run.departure.had_lapsed
    watched.store(tokens(0, 8))
    watched.store(tokens(100, 32))
    again = watched.find(tokens(0, 8))
    assert again is not None
    assert not again.departure.had_lapsed


def test_the_last_time_counts():
    watched = Watched()
    watched.store(tokens(0, 8))
    watched.cache.reset()
    watched.store(tokens(0, 8))
    watched.store(tokens(100, 32))
    run = watched.find(tokens(0, 8))
    assert run is not None
    assert run.departure.reason is Reason.ROOM


def test_memory_is_bounded_and_keeps_what_went_last():
    most = 64 * ENTRY_NBYTES
    watched = Watched(most_nbytes=most)
    for start in range(0, 40_000, 8):
        watched.store(tokens(start, 8))
        assert watched.gone.nbytes <= most
    assert watched.find(tokens(0, 8)) is None
    assert watched.find(tokens(40_000 - 48, 8)) is not None
    watched.gone.lapsed([node for node in watched.group.prefixes.tree.nodes() for _ in range(1000)])
    assert watched.gone.nbytes <= 2 * most


def test_the_clock_is_asked_once_for_all_that_goes_at_once(monkeypatch):
    asked = []
    monkeypatch.setattr(gone_module, "time", lambda: asked.append(1) or 5.0)
    watched = Watched()
    watched.store(tokens(0, 32))
    watched.gone.serve("a")
    watched.store(tokens(100, 32))
    assert len(asked) == 1
