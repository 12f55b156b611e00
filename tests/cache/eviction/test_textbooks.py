"""Every policy on pages that have nothing to do with one another, against what its paper says, access by access."""

import random
from collections import OrderedDict

import pytest

from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.namespace import Namespace
from pagoda.registry import lookup, names

PAGE_TOKENS = 4
NAMESPACE = Namespace()


class Paged:
    """One-page prompts over a group of pages."""

    def __init__(self, name, num_pages):
        self.group = PageGroup(num_pages, PAGE_TOKENS, lookup("eviction", name)(), KeepAll())

    def access(self, item):
        tokens = [item] * PAGE_TOKENS
        match = self.group.match(NAMESPACE, token_key(tokens))
        table, _ = self.group.attach(NAMESPACE, match, match.num_tokens)
        self.group.reserve(table, PAGE_TOKENS - match.num_tokens)
        self.group.commit(table, tokens, PAGE_TOKENS)
        self.group.release(table, tokens)
        return match.num_tokens == PAGE_TOKENS


class LRU:
    def __init__(self, size):
        self.size, self.items = size, OrderedDict()

    def access(self, item):
        hit = item in self.items
        if not hit and len(self.items) == self.size:
            self.items.popitem(last=False)
        self.items[item] = None
        self.items.move_to_end(item)
        return hit


class FIFO(LRU):
    def access(self, item):
        return item in self.items or super().access(item)


class LFUDA:
    """The least K, which is how often it was used since it came, and the K of what went last by then."""

    def __init__(self, size):
        self.size, self.level, self.now = size, 0, 0
        self.items = {}  # uses, K, when

    def access(self, item):
        self.now += 1
        uses = self.items[item][0] if item in self.items else 0
        if not uses and len(self.items) == self.size:
            victim = min(self.items, key=lambda each: self.items[each][1:])
            self.level = self.items.pop(victim)[1]
        self.items[item] = (uses + 1, uses + 1 + self.level, self.now)
        return uses > 0


class SIEVE:
    """As in figure 3 of the paper: a list from the newest to the oldest, and a hand."""

    def __init__(self, size):
        self.size, self.queue, self.visited, self.hand = size, [], {}, None  # oldest first

    def access(self, item):
        if item in self.visited:
            self.visited[item] = True
            return True
        if len(self.queue) == self.size:
            place = self.queue.index(self.hand) if self.hand is not None else 0
            while self.visited[self.queue[place]]:
                self.visited[self.queue[place]] = False
                place = (place + 1) % len(self.queue)
            victim = self.queue.pop(place)
            del self.visited[victim]
            self.hand = self.queue[place] if place < len(self.queue) else None
        self.queue.append(item)
        self.visited[item] = False
        return False


class S3FIFO:
    """Algorithm 1 of the paper, with a tenth of the size for the small queue."""

    def __init__(self, size):
        self.size, self.small_size = size, max(size // 10, 1)
        self.small, self.main, self.ghost = OrderedDict(), OrderedDict(), OrderedDict()

    def access(self, item):
        for queue in (self.small, self.main):
            if item in queue:
                queue[item] += 1
                return True
        while len(self.small) + len(self.main) >= self.size:
            self.evict()
        if item in self.ghost:
            del self.ghost[item]
            self.main[item] = 0
        else:
            self.small[item] = 0
        return False

    def evict(self):
        if len(self.small) >= self.small_size or not self.main:
            item, hits = self.small.popitem(last=False)
            if hits > 1:
                self.main[item] = 0
                return
            self.ghost[item] = None
            if len(self.ghost) > max(self.size - self.small_size, 1):
                self.ghost.popitem(last=False)
        else:
            item, hits = self.main.popitem(last=False)
            if hits:
                self.main[item] = min(hits, 3) - 1


TEXTBOOKS = {
    "lru": LRU,
    "lfu": LFUDA,
    "fifo": FIFO,
    "s3-fifo": S3FIFO,
    "sieve": SIEVE,
    "gdsf": LFUDA,  # all cost the same here
    "ttl": LRU,
}


def workload(draw, num_items, length):
    """Some items come often, some once, and the favourites change."""
    for step in range(length):
        if draw.random() < 0.3:
            yield 10_000 + step
        else:
            yield (int(draw.paretovariate(1.1)) + step // 300 * 5) % num_items


def test_every_policy_has_its_textbook():
    assert TEXTBOOKS.keys() == set(names("eviction"))


@pytest.mark.parametrize("num_pages", [1, 2, 5, 16, 60])
@pytest.mark.parametrize("name", TEXTBOOKS)
def test_it_hits_where_the_textbook_does(name, num_pages):
    for seed in range(5):
        paged, textbook = Paged(name, num_pages), TEXTBOOKS[name](num_pages)
        for step, item in enumerate(workload(random.Random(seed), 3 * num_pages + 2, 1500)):
            assert paged.access(item) == textbook.access(item), (seed, step, item)
            if step % 20 == 0:  # it takes longer than many accesses, and what is broken stays so
                paged.group.check_integrity([])
