"""What nobody uses goes after its time, and not before."""

import pytest

from pagoda.cache.cache import Cache
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.inspector import Inspector
from pagoda.cache.leases import Breakpoint
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.sequence import Kept
from pagoda.config import EngineConfig
from pagoda.errors import ConfigError
from pagoda.layouts.spec import Reach
from stateful.test_cache_machine import TokenStore, window

PAGE_TOKENS = 4
NAMESPACE = Namespace()


class Served:
    """A cache of `lifetime` seconds, and the time."""

    def __init__(self, lifetime, num_pages=64, rule=None):
        self.now = 100.0
        self.group = PageGroup(num_pages, PAGE_TOKENS, LRU(), rule or KeepAll())
        self.cache = Cache(
            [self.group], [TokenStore(num_pages, PAGE_TOKENS)], clock=lambda: self.now, lifetime_seconds=lifetime
        )

    def start(self, tokens):
        """A sequence of `tokens` that runs, and how many of them were held."""
        self.cache.expire()
        hit = self.cache.match(NAMESPACE, tokens, len(tokens))
        sequence = self.cache.attach(hit, len(tokens))
        assert self.cache.reserve(sequence, len(tokens) - hit.num_tokens)
        self.cache.commit(sequence, tokens, len(tokens))
        return sequence, hit.num_tokens

    def ask(self, tokens):
        sequence, num_hits = self.start(tokens)
        self.cache.release(sequence, tokens)
        return num_hits


def test_it_goes_after_its_time_though_there_is_room():
    served = Served(10)
    served.ask(list(range(8)))
    served.now += 9.9
    served.ask([99] * 4)
    assert served.group.holdings.counts.idle == 3
    served.now += 0.2
    stats = Inspector(served.cache).stats()
    assert (stats.expired_pages, stats.evicted_pages, stats.groups[0].idle) == (2, 0, 1)
    assert served.ask(list(range(8))) == 0


def test_a_hit_begins_its_time_again():
    served = Served(10)
    for _ in range(10):
        served.ask(list(range(8)))
        served.now += 9
    assert served.ask(list(range(8))) == 8


def test_a_prefix_stays_with_what_continues_it():
    served = Served(10)
    served.ask(list(range(8)))
    served.now += 6
    served.ask([*range(4), 50, 51, 52, 53])
    served.now += 6
    assert served.ask(list(range(8))) == 4


def test_time_in_which_nothing_happens_counts():
    served = Served(10)
    served.ask(list(range(8)))
    served.now += 1000
    assert served.ask(list(range(8))) == 0


def test_what_is_in_use_or_leased_stays():
    served = Served(10)
    running, _ = served.start(list(range(8)))
    served.ask([60] * 8)
    served.cache.leases.grant(NAMESPACE, [60] * 8, Breakpoint(8, 50.0))
    served.now += 20
    served.cache.expire()
    assert Inspector(served.cache).stats().expired_pages == 0
    served.cache.release(running, list(range(8)))
    served.now += 9
    assert served.ask(list(range(8))) == 8
    served.now += 30
    assert served.ask([60] * 8) == 0


def test_what_a_window_leaves_behind_goes_however_long_it_was_in_use():
    served = Served(10, rule=window(Reach.SLIDING, 4))
    running, _ = served.start(list(range(8)))
    served.now += 20
    served.cache.expire()
    assert served.cache.reserve(running, 16)
    served.cache.commit(running, list(range(24)), 24)
    served.now += 11
    served.cache.expire()
    assert served.group.holdings.counts.idle == 0


def test_what_a_compacted_sequence_gives_up_goes_however_long_it_was_in_use():
    served = Served(10)
    running, _ = served.start(list(range(8)))
    served.now += 20
    served.cache.expire()
    served.cache.compact(running, list(range(8)), {0: Kept(2, [[0, 7, -1, -1]])})
    assert served.group.holdings.counts.idle == 2
    served.now += 11
    served.cache.expire()
    assert served.group.holdings.counts.idle == 0


def test_many_uses_leave_few_marks():
    served = Served(10)
    for step in range(5000):
        served.ask([step % 7] * 4)
        served.now += 0.001
    assert len(served.cache._lifetime._marks) < 600
    served.now += 10 + 10 / 256
    served.cache.expire()
    assert served.group.holdings.counts.idle == 0


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "5", True])
def test_a_lifetime_is_a_number_of_seconds(seconds):
    with pytest.raises(ConfigError, match="prefix_cache_ttl_seconds"):
        EngineConfig(prefix_cache_ttl_seconds=seconds)


def test_a_lifetime_of_what_is_not_kept_is_refused():
    with pytest.raises(ConfigError, match="leave out one"):
        EngineConfig(prefix_cache_ttl_seconds=5, enable_prefix_caching=False)
