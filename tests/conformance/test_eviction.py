"""What every registered eviction policy inherits: it orders idle leaves, and nothing in use or continued ever goes."""

import random

import pytest

from pagoda.cache.eviction.base import EvictionPolicy
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.prefix.keys import token_key
from pagoda.errors import OutOfPagesError
from pagoda.registry import REGISTRY, lookup

PAGE_TOKENS = 4
NUM_PAGES = 12

every_policy = pytest.mark.parametrize("name", REGISTRY["eviction"])


def make_group(name):
    return PageGroup(NUM_PAGES, PAGE_TOKENS, lookup("eviction", name)(), KeepAll())


def start(group, tokens):
    match = group.match("", token_key(tokens))
    table, _ = group.attach("", match, match.num_tokens)
    try:
        group.reserve(table, len(tokens) - table.num_tokens)
    except OutOfPagesError:
        group.release(table)
        raise
    group.commit(table, tokens, len(tokens))
    return table


def held_pages(group, tokens):
    return [node.page for node in group.match("", token_key(tokens)).path]


@every_policy
def test_it_is_a_policy(name):
    assert isinstance(lookup("eviction", name)(), EvictionPolicy)


@every_policy
def test_every_idle_page_can_be_had(name):
    group = make_group(name)
    for first in range(NUM_PAGES):
        tokens = [first // 3, first % 3, 0, 0, *range(4)]
        group.release(start(group, tokens), tokens)
    start(group, [99] * NUM_PAGES * PAGE_TOKENS)
    assert group.holdings.counts.free == group.holdings.counts.idle == 0


@every_policy
@pytest.mark.parametrize("seed", range(10))
def test_pages_in_use_never_go_and_prefixes_go_last(name, seed):
    group, draw = make_group(name), random.Random(seed)
    used = {}
    for step in range(200):
        tokens = draw.choices(range(2), k=draw.randrange(1, 16))
        try:
            table = start(group, tokens)
        except OutOfPagesError:
            assert used, "with nothing in use there is always room"
        else:
            used[step] = (tokens, table)
        if used and draw.random() < 0.6:
            tokens, table = used.pop(draw.choice(list(used)))
            group.release(table, tokens)
        # Also proves leaf first: a parent that went before its child would leave pages nobody can reach.
        group.check_integrity([table for _, table in used.values()])
        for tokens, table in used.values():
            whole = len(tokens) // PAGE_TOKENS
            assert held_pages(group, tokens)[:whole] == list(table.pages[:whole])
