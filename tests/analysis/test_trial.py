"""Where windows decide who runs, the answer is the scheduler's own: so many, and not one more."""

from __future__ import annotations

import random

import pytest

from pagoda.analysis.trial import users_at_once
from pagoda.cache.eviction.lru import LRU
from pagoda.cache.groups.pages import PageGroup
from pagoda.config import EngineConfig
from pagoda.formats.page import PageGeometry
from pagoda.layouts.attention import AttentionLayout
from pagoda.layouts.spec import LayerGroup, Reach
from pagoda.planning.memory import MemoryPlan
from pagoda.planning.users import Load, most_users
from pagoda.registry import lookup
from planning.at_once import longest_run, runs_at_once

LAYOUTS = (AttentionLayout(1, 8, 8),)


@pytest.mark.parametrize("seed", range(30))
def test_as_many_run_behind_windows_as_are_counted_and_no_more(seed: int) -> None:
    rng = random.Random(seed)
    size, step_tokens = rng.choice([16, 32]), rng.choice([256, 2048])
    group = LayerGroup(Reach.SLIDING, rng.choice([8, 24, 64]), LAYOUTS)
    load = Load(rng.randint(20, 200) + 40, 40)
    num_pages = rng.randint(14, 24)
    memory = MemoryPlan((PageGeometry(group, lookup("format", "bf16"), size),), (num_pages,), None, 1000, "", "")
    config = EngineConfig(block_size=size, max_num_batched_tokens=step_tokens, max_num_seqs=200)
    users = users_at_once(memory, config, load)
    assert users >= most_users(memory, config, load) >= 1
    if longest_run(load, users + 1, step_tokens):
        assert runs_at_once(PageGroup(num_pages, size, LRU(), group), load, users, step_tokens)
        assert not runs_at_once(PageGroup(num_pages, size, LRU(), group), load, users + 1, step_tokens)


def test_where_everything_is_kept_nothing_needs_to_be_tried(monkeypatch) -> None:
    monkeypatch.setattr("pagoda.analysis.trial.Scheduler", None)
    group = LayerGroup(Reach.FULL, None, LAYOUTS)
    memory = MemoryPlan((PageGeometry(group, lookup("format", "bf16"), 32),), (100,), None, 1000, "", "")
    assert users_at_once(memory, EngineConfig(), Load(320, 64)) == 10
