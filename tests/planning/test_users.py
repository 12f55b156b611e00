"""Sequences that a plan admits, against the scheduler and the cache themselves over pages that hold no bytes."""

from __future__ import annotations

import random
from math import ceil

import pytest

from pagoda.cache.compression.choice import policy_of
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.pages import PageGroup
from pagoda.formats.page import PageGeometry
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.planning.users import Load, group_need, held_pages
from pagoda.registry import lookup
from planning.at_once import longest_run, runs_at_once

FULL = LayerGroup(Reach.FULL, None, (AttentionLayout(1, 8, 8),))


def geometry(group: LayerGroup, page_tokens: int) -> PageGeometry:
    return PageGeometry(group, lookup("format", "bf16"), page_tokens)


@pytest.mark.parametrize("seed", range(40))
def test_as_many_run_as_are_predicted_and_no_more(seed: int) -> None:
    rng = random.Random(seed)
    size, step_tokens = rng.choice([16, 32]), rng.choice([64, 256, 2048])
    prompt, generated = rng.randint(10, 300), rng.choice([30, 60, 100, 150])
    load = Load(prompt + generated, generated)
    need = group_need(geometry(FULL, size), load, step_tokens)
    num_pages = need.at_end + rng.randint(0, 40)
    users = need.most(num_pages)
    assert users >= 1
    if longest_run(load, users + 1, step_tokens):
        assert runs_at_once(PageGroup(num_pages, size, LRU(), FULL), load, users, step_tokens)
        assert not runs_at_once(PageGroup(num_pages, size, LRU(), FULL), load, users + 1, step_tokens)


@pytest.mark.parametrize("seed", range(40))
def test_behind_windows_as_many_run_as_are_predicted(seed: int) -> None:
    """At least: pages that windows give back at lucky moments may let one more in."""
    rng = random.Random(seed)
    size, step_tokens = rng.choice([16, 32]), rng.choice([64, 256, 2048])
    group = LayerGroup(Reach.SLIDING, rng.choice([8, 24, 64, 100]), FULL.layouts)
    prompt, generated = rng.randint(10, 300), rng.choice([60, 100, 150])
    load = Load(prompt + generated, generated)
    need = group_need(geometry(group, size), load, step_tokens)
    num_pages = max(need.at_start, need.at_end) + rng.randint(0, 40)
    users = need.most(num_pages)
    assert users >= 1
    if longest_run(load, users, step_tokens):
        assert runs_at_once(PageGroup(num_pages, size, LRU(), group), load, users, step_tokens)


@pytest.mark.parametrize("shared", [0, 32, 50, 64, 127, 128, 190])
def test_a_prefix_that_all_share_is_kept_once(shared: int) -> None:
    load = Load(256, 60, shared)
    need = group_need(geometry(FULL, 32), load, 2048)
    assert (need.shared, need.at_end) == (shared // 32, 8 - shared // 32)
    users = need.most(40)
    assert users == (40 - need.shared) // need.at_end
    assert runs_at_once(PageGroup(40, 32, LRU(), FULL), load, users, 2048)
    assert not runs_at_once(PageGroup(40, 32, LRU(), FULL), load, users + 1, 2048)


def test_what_may_be_endless_computes_no_more_than_the_context_before_it_is_compressed() -> None:
    """Of a prompt of 850 tokens 338 come after 512, in steps of 64 behind the 64 that are kept."""
    policy = policy_of("streaming:tokens=64,sinks=4,every=64")
    assert Load(900, 50, policy=policy, max_exact=512).held(32) == (512, 64 + 338 % 64, 128)
    assert Load(900, 50, policy=policy).held(32) == (850, 850, 864)


def test_who_repeats_a_prompt_has_room_for_a_chunk_and_a_page_more() -> None:
    """Behind 24 tokens that ask for it, and 8 that say where; but for the first chunk, which is asked for with 16."""
    for after, repeated in ((850, 250 + 24 + 8), (250, 250 + 16)):
        policy = policy_of(f"kvzip:tokens=64,chunk=250,after={after}")
        assert Load(after + 50, 50, policy=policy).held(32) == (after + repeated + 32, 64 + 49, 64 + 49)
    assert Load(900, 50, policy=policy_of("kvzip:tokens=900")).held(32) == (850, 850, 899)


@pytest.mark.parametrize("span", [None, 8, 33, 100])
@pytest.mark.parametrize("size", [16, 32])
def test_pages_are_those_that_the_cache_counts(span: int | None, size: int) -> None:
    group = LayerGroup(Reach.FULL if span is None else Reach.SLIDING, span, FULL.layouts)
    pages = PageGroup(1, size, LRU(), group)
    for num_tokens in range(1, 300, 7):
        for step_tokens in (1, 64, 2048):
            need = group_need(geometry(group, size), Load(num_tokens + 1, 1), step_tokens)
            assert need.at_start == pages.growth_cost(0, num_tokens, step_tokens)
        assert held_pages(group, size, num_tokens) == len(pages._needed_pages(num_tokens, ceil(num_tokens / size)))


def test_what_an_encoder_made_does_not_grow() -> None:
    group = LayerGroup(Reach.ENCODER, None, FULL.layouts)
    need = group_need(geometry(group, 32), Load(100, 10, num_encoded=100), 2048)
    assert (need.at_start, need.at_end, need.most(11), need.most(12), need.most(3)) == (4, 4, 2, 3, 0)
